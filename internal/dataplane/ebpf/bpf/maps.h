/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The maps. Those that verdicts need are pinned, so that they outlive the agent; the agent may enlarge them. Layout
 * changes show in the name of the directory they are pinned in.
 */
#ifndef BULKHEAD_MAPS_H
#define BULKHEAD_MAPS_H

#include "kernel.h"
#include "types.h"

#define PINNED __uint(pinning, LIBBPF_PIN_BY_NAME)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct settings);
	PINNED;
} config SEC(".maps");

/* The generation in force. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
	PINNED;
} active SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct subject);
	PINNED;
} subjects SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct subject_info);
	PINNED;
} subject_info SEC(".maps");

/* cgroup id -> subject + 1, for the topmost cgroups of units. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct versioned);
	PINNED;
} cgroups SEC(".maps");

/* Identities of single addresses, and of prefixes. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32[4]);
	__type(value, struct versioned);
	PINNED;
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct net_key);
	__type(value, struct versioned);
	PINNED;
} prefixes SEC(".maps");

/* Identity by listening port, of addresses that several workloads share. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, struct versioned);
	PINNED;
} ports SEC(".maps");

/* Where controllers answer. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, struct versioned);
	PINNED;
} controllers SEC(".maps");

/* Policy sets of local addresses, for subjects with SUBJECT_LOCAL_SETS. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct local_key);
	__type(value, struct versioned);
	PINNED;
} local_sets SEC(".maps");

/* Identities that subjects with SUBJECT_LOCAL_IDENTITIES have at addresses of theirs. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct local_key);
	__type(value, struct versioned);
	PINNED;
} local_identities SEC(".maps");

/* Addresses of this host, in the network namespace config.own_netns. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32[4]);
	__type(value, __u8);
	PINNED;
} own SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct row_key);
	__type(value, struct row);
	PINNED;
} rows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, struct row);
	PINNED;
} ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct alternative_key);
	__type(value, struct alternative);
	PINNED;
} alternatives SEC(".maps");

/* cgroup id -> number of the unit, for the topmost cgroups of the units that rules name as a process's. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct versioned);
	PINNED;
} units SEC(".maps");

/* Executables of the processes that were there before paths mattered. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct process_key);
	__type(value, __u64);
	PINNED;
} executables SEC(".maps");

/* The agent's own: number of a policy set -> hash of its content, written when all of its rows are there. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
	PINNED;
} policy_sets SEC(".maps");

/* The agent's own: hash of a rule -> its name. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, char[256]);
	PINNED;
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct socket_state);
	PINNED;
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct connection_key);
	__type(value, struct connection);
	PINNED;
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct denial_key);
	__type(value, struct denial);
	PINNED;
} denials SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct attempt_key);
	__type(value, __u32);
	PINNED;
} attempts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
	PINNED;
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
	PINNED;
} counters SEC(".maps");

/* The last handshake that a listener judged on this processor; see on_listener. */
struct handshake {
	__u64 state; /* of the subject; 0 while it is written */
	__u32 subject;
	__u32 pad;
	struct flow flow;
	struct decision decision;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct handshake);
} handshakes SEC(".maps");

/* Verdicts that were given on this processor a moment ago; see recall. */
#define RECALL_BITS 5

struct recalled {
	__u64 state; /* of the subject, */
	__u32 gen;   /* in this generation */
	__u32 turn;  /* odd while it is written */
	__u32 raddr[4];
	__u32 laddr[4]; /* of what comes in; else 0 */
	__u64 rule;
	__u64 peer;
	__u16 subject;
	__u16 port;
	__u8 proto;
	__u8 dir;
	__u8 verdict;
	__u8 pad;
};

struct memory {
	struct recalled of[1 << RECALL_BITS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct memory);
} memories SEC(".maps");

/* Time of the last wake-up of the reader of events, by processor. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} wakeups SEC(".maps");

/* Patterns of host names that rules name -> number. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct pattern_key);
	__type(value, __u32);
	PINNED;
} patterns SEC(".maps");

/* Identities that host names give to addresses that no workload owns. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct domain_key);
	__type(value, struct versioned);
	PINNED;
} domains SEC(".maps");

/* Identities of the resolvers whose answers count. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct versioned);
	PINNED;
} resolvers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct learnt_key);
	__type(value, struct address_names);
	PINNED;
} learnt SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct answer_key);
	__type(value, struct answer);
	PINNED;
} answers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct name_totals);
	PINNED;
} named SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct question_key);
	__type(value, struct question);
	PINNED;
} questions SEC(".maps");

/* A message between a socket of this host and a resolver. */
struct exchange {
	struct flow flow;
	struct question_key key;
	__u32 message; /* offset in the packet */
	__u16 questions;
	__u16 answers;
	__u8 flags[2];
};

/*
 * What is known while an answer is read: in the one hook that packets come in by, a processor handles one at a time. It is
 * too much for the stack.
 */
struct spelling {
	struct exchange exchange;
	struct pattern_key key; /* the name that was asked for */
	struct answer answer;
	__u64 name;             /* its hash, */
	__u64 current;          /* and that of what CNAMEs have led to */
	__u32 at;               /* offset of the next record */
	__u32 now;
	__u32 floor, ceiling;
	__u32 ttl; /* the least so far */
	__u32 epochs[2], patterns[2];
	__u32 addr[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct spelling);
} spellings SEC(".maps");

/* Who listened on TCP ports when the dataplane was installed: netns inode << 32 | port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct process);
} listening SEC(".maps");

/* Interface number -> what is known of it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct guarded);
	PINNED;
} guards SEC(".maps");

/* Addresses that stacks behind ports have -> number of the port; 0: several have it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32[4]);
	__type(value, __u32);
	PINNED;
} behind SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct passage_key);
	__type(value, struct passage);
	PINNED;
} passages SEC(".maps");

/* First fragments that may pass -> generation << 32 | subject << 16. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct piece_key);
	__type(value, __u64);
	PINNED;
} pieces SEC(".maps");

/* Question and answer of bulkhead_probe. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct probe);
} probes SEC(".maps");

static __always_inline struct settings *get_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline __u32 generation(void)
{
	__u32 zero = 0;
	__u64 *gen = bpf_map_lookup_elem(&active, &zero);

	return gen ? READ_ONCE(*gen) : 0;
}

static __always_inline __u64 state_at(__u32 subject, __u32 gen)
{
	struct subject *s = bpf_map_lookup_elem(&subjects, &subject);

	return s ? READ_ONCE(s->state[gen & 1]) : 0;
}

static __always_inline __u64 state_of(__u32 subject)
{
	return state_at(subject, generation());
}

/* epoch_at returns the epoch of host names in a generation; 0: no rule names hosts. */
static __always_inline __u32 epoch_at(__u32 gen)
{
	struct settings *c = get_config();

	return c ? READ_ONCE(c->epochs[gen & 1]) : 0;
}

static __always_inline void add_count(__u32 which, __u64 by)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &which);

	if (n)
		__sync_fetch_and_add(n, by);
}

static __always_inline void count(__u32 which) { add_count(which, 1); }

#endif
