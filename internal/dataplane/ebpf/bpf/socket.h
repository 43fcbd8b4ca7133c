/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who a socket belongs to, and what is remembered about it. */
#ifndef BULKHEAD_SOCKET_H
#define BULKHEAD_SOCKET_H

#include "events.h"
#include "packet.h"

#define LOOPBACK_IFINDEX 1
#define KERNEL_CGROUP 1 /* id of the root cgroup, which the kernel's own sockets are in */

/* resolved_by reports whether the word holds by its subject's state, and policy decides about it. */
static __always_inline bool resolved_by(__u64 word, __u64 state)
{
	return word_gen(word) && word_gen(word) == state_gen(state) && !exception(state);
}

/* resolved reports whether the subject in the word is still the one the socket belongs to, and policy decides about it. */
static __always_inline bool resolved(__u64 word)
{
	return resolved_by(word, state_of(word_subject(word)));
}

/* subject_of_cgroup returns subject + 1 of the unit whose topmost cgroup this is, or 0. */
GLOBAL __u32 subject_of_cgroup(__u64 id)
{
	struct versioned *v = id ? bpf_map_lookup_elem(&cgroups, &id) : NULL;

	return v ? value_at(v, generation()) : 0;
}

/* unit_levels returns settings.levels, all of them as they were at one moment. */
static __always_inline __u64 unit_levels(void)
{
	struct settings *c = get_config();

	return c ? READ_ONCE(c->levels) : 0;
}

/* subject_of_socket finds the unit among the ancestors of the socket's cgroup. */
static __always_inline __u32 subject_of_socket(struct bpf_sock *sk)
{
	__u64 levels = unit_levels();
	int i;

	for (i = 0; i < MAX_LEVELS && levels; i++, levels >>= 8) {
		__u32 subject = subject_of_cgroup(bpf_sk_ancestor_cgroup_id(sk, levels & 0xff));

		if (subject)
			return subject - 1;
	}
	return HOST;
}

/* subject_of_task does the same for the running task. */
static __noinline __u32 subject_of_task(void)
{
	__u64 levels = unit_levels();
	int i;

	for (i = 0; i < MAX_LEVELS && levels; i++, levels >>= 8) {
		__u32 subject = subject_of_cgroup(bpf_get_current_ancestor_cgroup_id(levels & 0xff));

		if (subject)
			return subject - 1;
	}
	return HOST;
}

/* unit_of_cgroup returns the number of the unit whose topmost cgroup this is, or 0. */
GLOBAL __u64 unit_of_cgroup(__u64 id)
{
	struct versioned *v = id ? bpf_map_lookup_elem(&units, &id) : NULL;

	return v ? value_at(v, generation()) : 0;
}

/* unit_of_socket finds the unit that rules may name among the ancestors of the socket's cgroup, or returns 0. */
static __noinline __u64 unit_of_socket(struct bpf_sock *sk)
{
	__u64 levels = processes_matter() ? unit_levels() : 0, unit;
	int i;

	for (i = 0; i < MAX_LEVELS && levels; i++, levels >>= 8) {
		unit = unit_of_cgroup(bpf_sk_ancestor_cgroup_id(sk, levels & 0xff));
		if (unit)
			return unit;
	}
	return 0;
}

/* unit_of_task does the same for the running task. */
static __noinline __u64 unit_of_task(void)
{
	__u64 levels = processes_matter() ? unit_levels() : 0, unit;
	int i;

	for (i = 0; i < MAX_LEVELS && levels; i++, levels >>= 8) {
		unit = unit_of_cgroup(bpf_get_current_ancestor_cgroup_id(levels & 0xff));
		if (unit)
			return unit;
	}
	return 0;
}

/*
 * peer_on_host returns subject + 1 of the socket at the other end of a flow that does not leave this host, or 0 if
 * there is none (a closed port).
 */
GLOBAL __u32 peer_on_host(struct __sk_buff *skb, const struct flow *f)
{
	bool v6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	struct bpf_sock_tuple t = {};
	struct socket_state *s;
	struct bpf_sock *sk;
	__u32 subject;
	__u32 size;

	if (!f)
		return 0;
	if (v6) {
		copy_addr(t.ipv6.saddr, f->laddr);
		copy_addr(t.ipv6.daddr, f->raddr);
		t.ipv6.sport = bpf_htons(f->lport);
		t.ipv6.dport = bpf_htons(f->rport);
		size = sizeof(t.ipv6);
	} else {
		t.ipv4.saddr = f->laddr[3];
		t.ipv4.daddr = f->raddr[3];
		t.ipv4.sport = bpf_htons(f->lport);
		t.ipv4.dport = bpf_htons(f->rport);
		size = sizeof(t.ipv4);
	}
	if (f->proto == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else if (f->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		return 0;
	if (!sk)
		return 0;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (s && resolved(s->word))
		subject = word_subject(s->word);
	else
		subject = subject_of_socket(sk);
	bpf_sk_release(sk);
	return subject + 1;
}

/* begin_socket notes whose the new socket is. Only for hooks in process context. */
static __always_inline void begin_socket(struct socket_state *s)
{
	__u32 gen = generation(), subject = subject_of_task();

	current_process(&s->process);
	s->cgroup = s->process.cgroup;
	WRITE_ONCE(s->word, make_word(state_gen(as_of(state_of(subject), gen)), subject, 0));
}

/* set_word changes the word if nobody else did; it reports whether it did. */
static __always_inline bool set_word(__u64 *word, __u64 old, __u64 new)
{
	return __sync_val_compare_and_swap(word, old, new) == old;
}

#endif
