/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The verdict: from a flow and a subject to allow, would-deny or deny and the rule that decided. Every program asks
 * here, and so does the probe that tests compare with the evaluator.
 */
#ifndef BULKHEAD_JUDGE_H
#define BULKHEAD_JUDGE_H

#include "process.h"

#define ICMP_PORT(type, code) ((__u16)((type) << 8 | (code)))

/* fixed_essential returns the rule of package essential that the protocol and destination port belong to, or 0. */
static __always_inline __u64 fixed_essential(__u8 proto, __u16 port)
{
	__u8 type = port >> 8;

	switch (proto) {
	case IPPROTO_ICMP:
		return type == 3 || type == 11 || type == 12 ? RULE_ICMP_ERROR : 0;
	case IPPROTO_ICMPV6:
		if (type >= 1 && type <= 4)
			return RULE_ICMP_ERROR;
		return (type >= 130 && type <= 137) || type == 143 ? RULE_ND : 0;
	case IPPROTO_UDP:
		return port == 67 || port == 68 || port == 546 || port == 547 ? RULE_DHCP : 0;
	}
	return 0;
}

/* reached reports whether generation gen is since or later; generations may wrap around. */
static __always_inline bool reached(__u32 gen, __u32 since)
{
	return (__s32)(gen - since) >= 0;
}

static __always_inline __u64 value_at(const struct versioned *v, __u32 gen)
{
	return reached(gen, v->since) ? v->cur : v->prev;
}

static __always_inline void copy_addr(__u32 *to, const __u32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

static __always_inline bool same_addr(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

/* identity_of returns the identity of the remote address, or, if several workloads share it, of its port. */
GLOBAL __u64 identity_of(const struct flow *f, __u32 gen)
{
	struct net_key prefix = {.bits = 128};
	struct versioned *v, *owner;
	__u64 id;
	bool shared;

	if (!f)
		return 0;
	v = bpf_map_lookup_elem(&addresses, f->raddr);
	if (!v) {
		copy_addr(prefix.addr, f->raddr);
		v = bpf_map_lookup_elem(&prefixes, &prefix);
	}
	if (!v)
		return 0;
	id = value_at(v, gen);
	shared = reached(gen, v->since) ? v->cur_shared : v->prev_shared;
	if (shared && f->dir == OUT) {
		struct port_key key = {.port = f->port, .proto = f->proto};

		copy_addr(key.addr, f->raddr);
		owner = bpf_map_lookup_elem(&ports, &key);
		if (owner) {
			__u64 exact = value_at(owner, gen);

			if (exact)
				return exact;
		}
	}
	return id;
}

/*
 * is_controller reports whether the flow is one between an agent and its controller: the host's own on its way there,
 * or anybody's to the port of a controller that answers here.
 */
GLOBAL int is_controller(const struct flow *f, __u32 subject, __u32 gen)
{
	struct port_key key = {};
	struct versioned *v;

	if (!f)
		return false;
	key.port = f->port;
	key.proto = f->proto;
	if (f->proto != IPPROTO_TCP || (f->dir == OUT && subject != 0))
		return false;
	copy_addr(key.addr, f->dir == OUT ? f->raddr : f->laddr);
	v = bpf_map_lookup_elem(&controllers, &key);
	return v && value_at(v, gen);
}

/* identity_at returns the identity that a subject of this host has at its address, the remote one of the flow. */
GLOBAL __u64 identity_at(const struct flow *f, __u32 subject, __u32 gen)
{
	struct subject_info *info = bpf_map_lookup_elem(&subject_info, &subject);
	struct local_key key = {.subject = subject};
	struct versioned *v;
	__u64 id = 0;

	if (f && ((__u32)state_at(subject, gen) & SUBJECT_LOCAL_IDENTITIES)) {
		copy_addr(key.addr, f->raddr);
		v = bpf_map_lookup_elem(&local_identities, &key);
		id = v ? value_at(v, gen) : 0;
	}
	if (!id && info)
		id = value_at(&info->identity, gen);
	return id;
}

/* find_row returns the most specific row of the policy set for the peer, or NULL if the set has none at all. */
static __always_inline struct row *find_row(__u32 pset, __u64 peer, const struct flow *f)
{
	struct row_key key = {.peer = peer, .pset = pset, .kind = ROW_ANY | f->dir};
	struct row *any, *r;

	any = bpf_map_lookup_elem(&rows, &key);
	if (!any && peer) {
		key.peer = 0;
		any = bpf_map_lookup_elem(&rows, &key);
	}
	if (!any)
		return NULL;
	key.peer = any->function;
	if (any->has & HAS_PORT) {
		key.kind = ROW_PORT | f->dir;
		key.proto = f->proto;
		key.port = f->port;
		r = bpf_map_lookup_elem(&rows, &key);
		if (r)
			return r;
	}
	if (any->has & HAS_RANGE) {
		struct range_key range = {
			.bits = 96,
			.pset = pset,
			.function = any->function,
			.dir = f->dir,
			.proto = f->proto,
			.port = bpf_htons(f->port),
		};

		r = bpf_map_lookup_elem(&ranges, &range);
		if (r)
			return r;
	}
	if (any->has & HAS_PROTO) {
		key.kind = ROW_PROTO | f->dir;
		key.proto = f->proto;
		key.port = 0;
		r = bpf_map_lookup_elem(&rows, &key);
		if (r)
			return r;
	}
	return any;
}

#define NO_NAME 0ull   /* the slot is free, or its time is over */
#define NO_NAMES ~0ull /* the address has no names */

static __always_inline __u32 now_seconds(void)
{
	return bpf_ktime_get_boot_ns() / 1000000000ull;
}

/*
 * named_as returns what the remote address is by its name in a slot, where it is base by itself. No identity is NO_NAME or
 * NO_NAMES but that of base 0, which names leave as it is: they make it BY_ITSELF.
 */
#define BY_ITSELF 1ull
GLOBAL __u64 named_as(const struct flow *f, __u64 base, __u32 gen, __u32 slot, __u32 stale)
{
	struct learnt_key key = {.epoch = epoch_at(gen)};
	struct domain_key domain = {.base = base, .epoch = key.epoch};
	struct versioned *v;
	struct address_names *l;
	__u64 word, id;

	if (!f || slot >= NAMES)
		return NO_NAMES;
	copy_addr(key.addr, f->raddr);
	l = bpf_map_lookup_elem(&learnt, &key);
	if (!l || READ_ONCE(l->slots[0]) == LEARNT_GONE)
		return NO_NAMES;
	word = READ_ONCE(l->slots[slot]);
	if (!word || (!stale && (__u32)word <= now_seconds()))
		return NO_NAME;
	domain.pattern = (__u32)(word >> 32) - 1;
	v = bpf_map_lookup_elem(&domains, &domain);
	id = v ? value_at(v, gen) : 0;
	return id ? id : base ? base : BY_ITSELF;
}

/*
 * exception_now returns the rule that decides instead of policy, or 0: the glass is broken, or the agent is lost and the
 * subject is one that then is open or closed. What an exception decides is never kept: it ends by itself.
 */
static __always_inline __u64 exception_now(__u64 state)
{
	struct settings *c = get_config();

	if (!c)
		return 0;
	if (((__u32)state & SUBJECT_GLASS) && bpf_ktime_get_boot_ns() < READ_ONCE(c->glass_until))
		return RULE_BREAK_GLASS;
	if ((__u32)state & (SUBJECT_LOSS_OPEN | SUBJECT_LOSS_CLOSED)) {
		__u64 beat = READ_ONCE(c->beat);

		if (beat && (__s64)(bpf_ktime_get_ns() - beat) > (__s64)c->patience)
			return RULE_AGENT_LOST;
	}
	return 0;
}

GLOBAL __u64 exception_of(__u64 state)
{
	return exception_now(state);
}

/* exception does the same at the price of one test where there can be none. */
static __always_inline __u64 exception(__u64 state)
{
	return (__u32)state & SUBJECT_EXCEPTIONS ? exception_of(state) : 0;
}

/* set_at returns the policy set of the subject at its address, the local one of the flow; pset, if it has none there. */
GLOBAL __u32 set_at(const struct flow *f, __u32 subject, __u32 gen, __u32 pset)
{
	struct local_key key = {.subject = subject};
	struct versioned *v;

	if (!f)
		return pset;
	copy_addr(key.addr, f->laddr);
	v = bpf_map_lookup_elem(&local_sets, &key);
	return v && value_at(v, gen) ? value_at(v, gen) : pset;
}

/* judge_peer decides by the policy set as if the other end were the peer. */
GLOBAL int judge_peer(const struct flow *f, const struct process *p, struct decision *d, __u32 pset, __u64 peer)
{
	struct alternative_key list = {.pset = pset};
	struct row *r;

	if (!f || !d)
		return 0;
	d->peer = peer;
	r = find_row(pset, peer, f);
	if (!r) {
		d->rule = RULE_MISSING;
		d->verdict = DENY;
		return 0;
	}
	d->rule = r->rule;
	d->verdict = r->verdict;
	list.list = r->list;
	if (list.list)
		pick(d, p, &list);
	return 0;
}

/*
 * judge_names decides by each name that the other end has, and leaves the most permissive decision; among equal ones that
 * for the least identity, so that it does not matter which name was learnt first. Where there is no name the address counts.
 */
static __always_inline void judge_names(const struct flow *f, const struct process *p, __u32 pset, __u32 gen, struct decision *d)
{
	__u64 base = d->peer, best = NO_NAMES, last = NO_NAMES, id;
	__u8 verdict = DENY;
	__u32 i;

	if (f->dir == OUT && !d->rsubject && epoch_at(gen)) {
		for (i = 0; i < NAMES; i++) {
			id = named_as(f, base, gen, i, d->was_named);
			if (id == NO_NAMES)
				break;
			if (id == NO_NAME)
				continue;
			last = id == BY_ITSELF ? 0 : id;
			judge_peer(f, p, d, pset, last);
			if (best == NO_NAMES || d->verdict > verdict || (d->verdict == verdict && last < best)) {
				best = last;
				verdict = d->verdict;
			}
		}
		d->named = best != NO_NAMES;
	}
	if (best == NO_NAMES)
		judge_peer(f, p, d, pset, base);
	else if (last != best)
		judge_peer(f, p, d, pset, best);
}

/* judge_once reports whether an exception has decided. It leaves in pset the policy set that is to decide; 0: it is decided. */
static __always_inline bool judge_once(const struct flow *f, __u32 subject, __u64 state, __u32 gen, struct decision *d,
				       __u32 *decides)
{
	__u32 pset = state_pset(state);

	*decides = 0;
	d->peer = 0;
	d->named = false;
	d->verdict = ALLOW;
	d->rule = fixed_essential(f->proto, f->port);
	if (d->rsubject) {
		__u32 rsubject = d->rsubject - 1;

		d->peer = identity_at(f, rsubject, gen);
		if (!d->rule && rsubject == subject)
			d->rule = RULE_SAME_WORKLOAD;
	} else {
		d->peer = identity_of(f, gen);
	}
	if (!d->rule && is_controller(f, subject, gen))
		d->rule = RULE_CONTROLLER;
	if (pset == 0)
		d->rule = RULE_BEFORE;
	if (d->rule)
		return false;
	d->rule = (__u32)state & SUBJECT_EXCEPTIONS ? exception_now(state) : 0; /* there is no stack for a call */
	if (d->rule) {
		if (d->rule == RULE_AGENT_LOST && ((__u32)state & SUBJECT_LOSS_CLOSED))
			d->verdict = DENY;
		return true;
	}
	if ((__u32)state & SUBJECT_LOCAL_SETS)
		pset = set_at(f, subject, gen, pset);
	*decides = pset;
	return false;
}

/* read_barrier keeps what is read before it from being read after it: an atomic operation with a result is ordered. */
static __always_inline void read_barrier(void)
{
	__u64 word = 0, before;

	before = __sync_lock_test_and_set(&word, 1);
	barrier_var(before);
}

/*
 * Before the first policy everything passes by RULE_BEFORE, and flows are remembered without a word: nobody could say
 * whose they are. The first policy judges them like any other, in the direction in which they were opened.
 */
static __always_inline bool before_policy(const struct decision *d)
{
	return d->rule == RULE_BEFORE;
}

/*
 * judge decides the flow for the subject and, where a rule asks for it, the process in d->unit; d->rsubject says who is at
 * the other end, where that is known. It returns
 * the state of the subject under which the verdict holds. What a generation needs is deleted only when the next one is
 * in force, so a generation that is still in force afterwards proves that all that was read belonged to it. A subject
 * that has gone meanwhile is the host's again, and has no state that a verdict could hold under. Nor has an exception.
 */
GLOBAL __u64 judge(const struct flow *f, __u32 subject, const struct process *p, struct decision *d)
{
	bool exceptional = false;
	__u64 state = 0;
	__u32 pset;
	int i;

	if (!f || !d)
		return 0;
	for (i = 0; i < 4; i++) {
		__u32 gen = generation();

		state = state_at(subject, gen);
		if (state)
			exceptional = judge_once(f, subject, state, gen, d, &pset);
		else
			judge_once(f, HOST, state_at(HOST, gen), gen, d, &pset);
		if (pset)
			judge_names(f, p, pset, gen, d);
		read_barrier();
		if (generation() == gen)
			break;
	}
	count(COUNT_JUDGED);
	if (d->rule == RULE_MISSING)
		count(COUNT_ERRORS);
	return exceptional ? 0 : state;
}

/*
 * as_of returns the state if gen, the generation in which its subject was found, is still in force, and none if it is
 * not: a verdict must not be kept for a subject that the flow no longer belongs to.
 */
static __always_inline __u64 as_of(__u64 state, __u32 gen)
{
	read_barrier();
	return generation() == gen ? state : 0;
}

/*
 * Connections to one service are made again and again, so verdicts are remembered for a while: those that follow from the
 * generation, the subject and the flow alone. Any other generation voids them, also one that changes something else.
 */
static __always_inline struct recalled *memory_of(const struct flow *f, __u32 subject, __u64 state, __u32 gen)
{
	struct settings *c = get_config();
	struct memory *m;
	__u32 zero = 0, hash;

	if (!state || ((__u32)state & (SUBJECT_LOCAL_SETS | SUBJECT_EXCEPTIONS)) || !c || c->processes ||
	    (f->dir == OUT && READ_ONCE(c->epochs[gen & 1])))
		return NULL;
	m = bpf_map_lookup_elem(&memories, &zero);
	if (!m)
		return NULL;
	hash = f->raddr[0] ^ f->raddr[1] ^ f->raddr[2] ^ f->raddr[3] ^ f->port ^ subject << 16;
	return &m->of[hash * 0x9e3779b1u >> (32 - RECALL_BITS)];
}

/*
 * recall decides as judge has decided in this generation on this processor; it reports whether that is remembered. Who
 * interrupts a writer finds the turn odd, and who is interrupted by one finds another turn afterwards.
 */
GLOBAL int recall(const struct flow *f, __u32 subject, __u64 state, __u32 gen, struct decision *d)
{
	struct recalled *r;
	__u32 turn;

	if (!f || !d)
		return false;
	r = memory_of(f, subject, state, gen);
	if (!r)
		return false;
	turn = READ_ONCE(r->turn);
	barrier();
	if ((turn & 1) || r->gen != gen || r->state != state || r->subject != subject || r->port != f->port || r->proto != f->proto ||
	    r->dir != f->dir || !same_addr(r->raddr, f->raddr) || (f->dir == IN && !same_addr(r->laddr, f->laddr)))
		return false;
	d->rule = r->rule;
	d->peer = r->peer;
	d->verdict = r->verdict;
	d->named = false;
	barrier();
	if (READ_ONCE(r->turn) != turn)
		return false;
	count(COUNT_JUDGED);
	return true;
}

/* remember keeps a decision for recall. The state is what it holds under, in this generation; 0: it does not hold. */
GLOBAL int remember_verdict(const struct flow *f, __u32 subject, __u64 state, __u32 gen, const struct decision *d)
{
	struct recalled *r;
	__u32 turn;

	if (!f || !d || d->rsubject || d->rule == RULE_MISSING) /* what is missing will be put back */
		return 0;
	r = memory_of(f, subject, state, gen);
	if (!r)
		return 0;
	turn = READ_ONCE(r->turn);
	if ((turn & 1) || __sync_val_compare_and_swap(&r->turn, turn, turn + 1) != turn)
		return 0;
	r->gen = gen;
	r->state = state;
	r->subject = subject;
	r->port = f->port;
	r->proto = f->proto;
	r->dir = f->dir;
	copy_addr(r->raddr, f->raddr);
	copy_addr(r->laddr, f->laddr);
	r->rule = d->rule;
	r->peer = d->peer;
	r->verdict = d->verdict;
	barrier();
	WRITE_ONCE(r->turn, turn + 2);
	return 0;
}

/*
 * decide is judge for what is often asked. gen is the generation in which the subject was found, and state what it was as of
 * that; the state that it returns is as of it too.
 */
static __always_inline __u64 decide(const struct flow *f, __u32 subject, __u64 state, __u32 gen, const struct process *p,
				    struct decision *d)
{
	if (!d->rsubject && recall(f, subject, state, gen, d))
		return state;
	state = as_of(judge(f, subject, p, d), gen);
	remember_verdict(f, subject, state, gen, d);
	return state;
}

#endif
