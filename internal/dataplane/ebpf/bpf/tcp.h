/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * TCP. A connection is remembered in its socket: a packet of a judged connection costs two look-ups and is not even
 * parsed. A listener judges handshakes; the socket that comes of one inherits what the listener's storage holds and
 * is a connection of its own from its first moment.
 */
#ifndef BULKHEAD_TCP_H
#define BULKHEAD_TCP_H

#include "socket.h"

static __always_inline bool same_flow(const struct flow *a, const struct flow *b)
{
	return a->lport == b->lport && a->rport == b->rport && a->dir == b->dir && a->proto == b->proto &&
	       same_addr(a->raddr, b->raddr) && same_addr(a->laddr, b->laddr);
}

/*
 * settle records a decision for a connection whose word was old, and tells about it once. It returns the word that
 * holds then: another processor may have been faster.
 */
static __noinline __u64 settle(struct socket_state *s, __u64 old, __u64 new, const struct flow *f,
			       const struct decision *d)
{
	bool changed = !(old & FLOW_SEEN) || (old & FLOW_VERDICT) != d->verdict || s->rule != d->rule ||
		       word_subject(old) != word_subject(new);
	__u32 flags = 0;
	__u64 seen;

	new = (new & ~(__u64)(FLOW_VERDICT | FLOW_CONNECT | FLOW_NAMED)) | d->verdict;
	new |= FLOW_DIR | FLOW_JUDGED | FLOW_TUPLE;
	if (d->rsubject)
		new |= FLOW_LOOP;
	if (d->named)
		new |= FLOW_NAMED;
	if (before_policy(d))
		new |= FLOW_EXISTING;
	else
		new |= d->verdict != DENY ? FLOW_SEEN | FLOW_OPENED : FLOW_SEEN;
	seen = __sync_val_compare_and_swap(&s->word, old, new);
	if (seen != old)
		return seen;
	s->rule = d->rule;
	s->peer = d->peer;
	s->rsubject = d->rsubject;
	if (!(old & FLOW_TUPLE))
		s->flow = *f;
	if (!changed || before_policy(d))
		return new;
	if (old & FLOW_EXISTING)
		flags |= EVENT_EXISTING;
	if (old & FLOW_OPENED)
		flags |= EVENT_REJUDGED;
	if (d->verdict == DENY && !(flags & (EVENT_REJUDGED | EVENT_EXISTING)))
		deny_attempt(f, d, &s->process, word_subject(new), 0);
	else
		tell_verdict(f, d, &s->process, new, flags);
	return new;
}

/* has_listener reports whether somebody listens where this socket's connection would have arrived. */
static __always_inline bool has_listener(struct __sk_buff *skb, const struct flow *f, bool v6)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	bool listens;

	/* An address that nobody has keeps the look-up from finding the connection itself. */
	if (v6) {
		copy_addr(t.ipv6.daddr, f->laddr);
		t.ipv6.dport = bpf_htons(f->lport);
	} else {
		t.ipv4.daddr = f->laddr[3];
		t.ipv4.dport = bpf_htons(f->lport);
	}
	sk = bpf_sk_lookup_tcp(skb, &t, v6 ? sizeof(t.ipv6) : sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	listens = sk->state == TCP_LISTEN;
	bpf_sk_release(sk);
	return listens;
}

/* judge_connection is the slow path of a connection: it is new, or its verdict is of another generation. */
static __noinline bool judge_connection(struct __sk_buff *skb, struct bpf_sock *sk, struct socket_state *s, bool egress)
{
	bool v6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	struct details details = {};
	struct decision d = {};
	struct flow f = {};
	__u64 old, state, new;
	__u32 subject, flags, gen = generation();

	if (!s) {
		s = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (s)
			s->cgroup = bpf_sk_cgroup_id(sk);
		else /* no memory: it is judged all the same, and not remembered */
			count(COUNT_ERRORS);
	}
	old = s ? READ_ONCE(s->word) : 0;
	subject = resolved(old) ? word_subject(old) : subject_of_socket(sk);
	if (s && (old & FLOW_TUPLE)) {
		/* What a packet says may have been translated on its way; the first one of this host was not. */
		f = s->flow;
	} else {
		if (!read_packet(skb, &f, egress, &details)) {
			count(COUNT_ERRORS);
			return false;
		}
		f.lport = sk->src_port; /* what leaves may have been given another already */
		if (old & FLOW_DIR)
			f.dir = old & FLOW_OUT ? OUT : IN;
		else if (details.tcp_flags & TCP_SYN)
			f.dir = egress == !(details.tcp_flags & TCP_ACK) ? OUT : IN;
		else
			f.dir = has_listener(skb, &f, v6) ? IN : OUT;
		f.port = f.dir == OUT ? f.rport : f.lport;
	}
	state = as_of(state_of(subject), gen);
	if (s && (old & FLOW_CONNECT) && word_gen(old) == state_gen(state) && word_subject(old) == subject &&
	    !((__u32)state & SUBJECT_LOCAL_SETS) && same_addr(s->flow.raddr, f.raddr) && s->flow.rport == f.rport) {
		d.rule = s->rule;
		d.peer = s->peer;
		d.rsubject = s->rsubject;
		d.verdict = old & FLOW_VERDICT;
		d.named = !!(old & FLOW_NAMED);
	} else {
		d.was_named = !!(old & FLOW_NAMED);
		if (skb->ifindex == LOOPBACK_IFINDEX)
			d.rsubject = peer_on_host(skb, &f);
		d.unit = unit_of_socket(sk);
		state = as_of(judge(&f, subject, s ? &s->process : NULL, &d), gen);
	}
	if (!s)
		return d.verdict != DENY;
	flags = (old & 0xffff) | (f.dir == OUT ? FLOW_OUT : 0);
	new = settle(s, old, make_word(state_gen(state), subject, flags), &f, &d);
	return (new & FLOW_VERDICT) != DENY;
}

/*
 * denied lets a reset of a connection that once was open pass, in both directions, so that neither end waits for the
 * other for ever, and drops everything else.
 */
static __noinline bool denied(struct __sk_buff *skb, __u64 word, bool egress)
{
	struct details details = {};
	struct flow f = {};

	if ((word & (FLOW_OPENED | FLOW_EXISTING)) && read_packet(skb, &f, egress, &details) &&
	    (details.tcp_flags & TCP_RST))
		return true;
	count(COUNT_DROPPED);
	return false;
}

/* on_connection handles a packet of a connection unless it is known to be allowed. */
static __always_inline bool on_connection(struct __sk_buff *skb, struct bpf_sock *sk, bool egress)
{
	struct socket_state *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	__u64 word = s ? READ_ONCE(s->word) : 0;

	if ((word & FLOW_JUDGED) && resolved(word)) {
		if ((word & FLOW_VERDICT) != DENY) /* another processor has just judged it */
			return true;
	} else if (judge_connection(skb, sk, s, egress)) {
		return true;
	}
	return denied(skb, s ? READ_ONCE(s->word) : 0, egress);
}

/*
 * begin_listening makes the listener's word what its connections are to inherit: whose they are, and that they come
 * from outside. The socket may have been a connection itself before, of which nothing must be left.
 */
static __always_inline void begin_listening(struct socket_state *s, __u64 old, __u64 state, __u32 subject)
{
	__u64 word = make_word(state_gen(state), subject, FLOW_DIR);

	if (old == word || !set_word(&s->word, old, word))
		return;
	s->sent = 0;
	s->received = 0;
}

/*
 * on_listener judges a packet of a handshake. SYN, SYN-ACK and ACK of one handshake follow each other closely, so the
 * last decision on this processor is kept; the ACK's is what report_accepted finds when the new socket is there.
 * All of them come from the network, where a processor handles one at a time.
 */
static __noinline bool on_listener(struct __sk_buff *skb, struct bpf_sock *sk, bool egress)
{
	struct socket_state *s = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	struct details details = {};
	struct decision d = {};
	struct handshake *h;
	struct flow f = {};
	__u32 zero = 0, subject, gen = generation();
	__u64 old, state;
	bool syn;

	h = bpf_map_lookup_elem(&handshakes, &zero);
	if (!h || !read_packet(skb, &f, egress, &details)) {
		count(COUNT_ERRORS);
		return false;
	}
	f.dir = IN;
	f.lport = sk->src_port; /* what leaves may have been given another already */
	f.port = f.lport;
	syn = !egress && (details.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
	old = s ? READ_ONCE(s->word) : 0;
	subject = resolved(old) ? word_subject(old) : subject_of_socket(sk);
	state = as_of(state_of(subject), gen);
	if (s) {
		s->cgroup = bpf_sk_cgroup_id(sk);
		begin_listening(s, old, state, subject);
	}
	/* A SYN may come from another workload of this host than the last one with its ports did. */
	if (!syn && state && h->state == state && h->subject == subject && same_flow(&h->flow, &f)) {
		d = h->decision;
	} else {
		if (skb->ifindex == LOOPBACK_IFINDEX)
			d.rsubject = peer_on_host(skb, &f);
		d.unit = unit_of_socket(sk);
		state = decide(&f, subject, state, gen, s ? &s->process : NULL, &d);
		WRITE_ONCE(h->state, 0);
		barrier();
		h->subject = subject;
		h->flow = f;
		h->decision = d;
		barrier();
		WRITE_ONCE(h->state, state);
	}
	if (d.verdict != DENY)
		return true;
	if (syn) {
		struct attempt_key key = {.cookie = bpf_get_socket_cookie(skb), .rport = f.rport};
		__u32 *seq;

		copy_addr(key.laddr, f.laddr);
		copy_addr(key.raddr, f.raddr);
		seq = bpf_map_lookup_elem(&attempts, &key);
		if (!seq || *seq != details.seq) {
			bpf_map_update_elem(&attempts, &key, &details.seq, BPF_ANY);
			deny_attempt(&f, &d, s ? &s->process : NULL, subject, 0);
		}
	}
	count(COUNT_DROPPED);
	return false;
}

#endif
