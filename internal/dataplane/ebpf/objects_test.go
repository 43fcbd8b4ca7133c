package ebpf

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// TestStackOfOlderKernels adds up the stack of each chain of calls. Newer kernels count 16 bytes exactly, those before
// 6.7 count a multiple of 32 for each function; all of them refuse more than 512.
func TestStackOfOlderKernels(t *testing.T) {
	spec, err := loadPrograms()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		if depth, chain := deepest(functionsOf(p.Instructions), name); depth > 512 {
			t.Errorf("%s needs %d bytes of stack: %s", name, depth, chain)
		}
	}
}

// function is a function of a program: how much of its stack it uses, and whom it calls.
type function struct {
	stack int
	calls []string
}

func functionsOf(ins asm.Instructions) map[string]*function {
	all := map[string]*function{}
	var f *function
	var before asm.Instruction
	for _, i := range ins {
		if s := i.Symbol(); s != "" {
			f = &function{}
			all[s] = f
		}
		switch {
		case (i.Dst == asm.R10 || i.Src == asm.R10) && i.Offset < 0: // load or store
			f.stack = max(f.stack, -int(i.Offset))
		case i.OpCode.ALUOp() == asm.Add && before.OpCode.ALUOp() == asm.Mov && before.Src == asm.R10 && before.Dst == i.Dst:
			f.stack = max(f.stack, -int(i.Constant)) // a pointer to it
		}
		if i.IsFunctionReference() {
			f.calls = append(f.calls, i.Reference())
		}
		before = i
	}
	return all
}

func deepest(all map[string]*function, name string) (depth int, chain string) {
	f := all[name]
	for _, callee := range f.calls {
		if d, c := deepest(all, callee); d > depth {
			depth, chain = d, " > "+c
		}
	}
	return depth + max(32, (f.stack+31)/32*32), fmt.Sprintf("%s (%d)%s", name, f.stack, chain)
}

// TestHelpersOfOlderKernels lists the helpers that the programs call: one that a supported kernel (5.15 and later) does
// not have must not slip in.
func TestHelpersOfOlderKernels(t *testing.T) {
	const last = asm.FnTaskPtRegs // of 5.15
	spec, err := loadPrograms()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		for _, i := range p.Instructions {
			if !i.IsBuiltinCall() {
				continue
			}
			fn := asm.BuiltinFunc(i.Constant)
			if slices.Contains(onDemand, name) && fn == asm.FnLoop {
				continue // without it rules that name hosts are refused
			}
			if fn > last {
				t.Errorf("%s calls %s, which is newer than Linux 5.15", name, fn)
			}
		}
	}
}
