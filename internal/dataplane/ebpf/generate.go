package ebpf

// The objects are committed; regenerate them after a change to bpf/ with clang 19 and llvm-strip 19:
//
//go:generate go tool -modfile=../../../tools/go.mod bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel,bpfeb -type event -type denial_key -type denial -type alternative_key -type alternative -type pattern_key -type domain_key -type learnt_key -type name_totals -type address_names -type answer_key -type answer -type guarded -type recent_flow -output-stem programs programs bpf/bulkhead.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter -I/usr/include/x86_64-linux-gnu -ffile-prefix-map=bpf/=
