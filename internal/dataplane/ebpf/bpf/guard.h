/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Programs at interfaces of the host, for what the cgroup cannot see: what packet sockets send, and what comes from or goes to
 * a network stack that is not this kernel's (a virtual machine, one in user space) or not of a socket here. A packet keeps its
 * socket on its way over a veth and out of an interface, so that it is known whose it is.
 */
#ifndef BULKHEAD_GUARD_H
#define BULKHEAD_GUARD_H

#include "passages.h"

#define AF_PACKET 17
#define AF_XDP 44

/* Verdicts, of tcx and of cls_bpf alike: the next program decides, or the packet is dropped. */
#define FRAME_NEXT (-1)
#define FRAME_DROP 2

static __always_inline bool sends_packets(const struct bpf_sock *sk) { return sk->family == AF_INET || sk->family == AF_INET6; }
static __always_inline bool sends_frames(const struct bpf_sock *sk) { return sk->family == AF_PACKET || sk->family == AF_XDP; }

static __always_inline struct guarded *guard_of(__u32 ifindex)
{
	return bpf_map_lookup_elem(&guards, &ifindex);
}

/* is_judged reports whether the packet's socket is in a cgroup that is judged. */
static __always_inline bool is_judged(struct __sk_buff *skb)
{
	struct settings *c = get_config();

	if (!c || c->root_level == NO_LEVEL || !c->root_level)
		return true;
	return bpf_skb_ancestor_cgroup_id(skb, c->root_level) == c->root_cgroup;
}

/* subject_of_sender returns subject + 1 of the unit whose socket sends the packet, or 0. */
static __noinline __u32 subject_of_sender(struct __sk_buff *skb)
{
	__u64 levels = unit_levels();
	__u32 subject = 0;
	int i;

	for (i = 0; i < MAX_LEVELS && levels && !subject; i++, levels >>= 8)
		subject = subject_of_cgroup(bpf_skb_ancestor_cgroup_id(skb, levels & 0xff));
	return subject;
}

/* unit_of_sender does the same for units that rules may name. */
static __noinline __u64 unit_of_sender(struct __sk_buff *skb)
{
	__u64 levels = processes_matter() ? unit_levels() : 0, unit = 0;
	int i;

	for (i = 0; i < MAX_LEVELS && levels && !unit; i++, levels >>= 8)
		unit = unit_of_cgroup(bpf_skb_ancestor_cgroup_id(skb, levels & 0xff));
	return unit;
}

/* find_sender notes whose packet socket sends; it reports false if that is nobody's here. */
static __noinline bool find_sender(struct __sk_buff *skb, struct passing *p)
{
	__u32 subject = subject_of_sender(skb);

	if (!subject && !is_judged(skb))
		return false;
	p->subject = subject ? subject - 1 : HOST;
	p->sender = true;
	p->unit = unit_of_sender(skb);
	return true;
}

/* is_spoofed reports whether what is behind the port sends from an address that this host has, or the stack behind another port. */
static __always_inline bool is_spoofed(const struct flow *f, __u32 ifindex)
{
	__u32 *at = bpf_map_lookup_elem(&behind, f->laddr);

	if (at && READ_ONCE(*at))
		return READ_ONCE(*at) != ifindex;
	return bpf_map_lookup_elem(&own, f->laddr) != NULL;
}

/*
 * deny_spoofed drops it if policy denies the subject what no rule allows; else it is judged as if the address were its own: where
 * nothing is enforced, nothing is dropped.
 */
static __noinline bool deny_spoofed(struct passing *p)
{
	struct flow f = {.proto = NO_PROTOCOL, .dir = OUT};
	struct decision d = {};

	judge(&f, p->subject, NULL, &d);
	if (d.verdict != DENY)
		return false;
	d.rule = RULE_SPOOFED;
	begin_direction(&p->frame, false);
	deny_passage(p, &d);
	return true;
}

/*
 * Only the first fragment of a packet has ports. Those that follow pass if it did, for the same policy; one that comes before
 * it is dropped.
 */
static __noinline int on_pieces(struct __sk_buff *skb, struct passing *p, bool passes)
{
	struct frame *f = &p->frame;
	struct piece_key key = {.id = f->id, .ifindex = p->key.ifindex, .proto = f->flow.proto};
	__u64 *known, word;

	copy_addr(key.src, f->leaving ? f->flow.laddr : f->flow.raddr);
	copy_addr(key.dst, f->leaving ? f->flow.raddr : f->flow.laddr);
	if (f->piece == FIRST_PIECE) {
		word = make_word(state_gen(state_of(p->subject)), p->subject, 0);
		if (passes)
			bpf_map_update_elem(&pieces, &key, &word, BPF_ANY);
		return passes;
	}
	known = bpf_map_lookup_elem(&pieces, &key);
	word = known ? *known : 0;
	passes = known && word_gen(word) == state_gen(state_of(word_subject(word)));
	if (!passes)
		count(COUNT_DROPPED);
	return passes;
}

/* judge_frame judges what has been read, and returns what becomes of it. */
static __always_inline int judge_frame(struct __sk_buff *skb, struct passing *p, bool guess)
{
	bool passes;

	if (p->frame.piece == LATER_PIECE)
		return on_pieces(skb, p, false) ? FRAME_NEXT : FRAME_DROP;
	passes = on_passage(skb, p, guess);
	if (p->frame.piece == FIRST_PIECE)
		passes = on_pieces(skb, p, passes);
	return passes ? FRAME_NEXT : FRAME_DROP;
}

/* on_sent judges what a packet socket of this host sends, through the interface that it leaves by. */
static __noinline int on_sent(struct __sk_buff *skb, bool raw)
{
	struct passing p = {.frame.leaving = true, .key.ifindex = skb->ifindex | PASSAGE_UPLINK};

	if (read_frame(skb, &p.frame, raw) == FRAME_ESSENTIAL || !find_sender(skb, &p))
		return FRAME_NEXT;
	return judge_frame(skb, &p, false);
}

/* on_leaving judges what comes out of the stack behind a port. */
static __noinline int on_leaving(struct __sk_buff *skb, struct guarded *g, bool from_socket)
{
	struct passing p = {.frame.leaving = true, .key.ifindex = skb->ifindex, .quiet = from_socket};
	struct bpf_sock *sk = skb->sk;
	bool known = false;

	if (read_frame(skb, &p.frame, g->raw) == FRAME_ESSENTIAL)
		return FRAME_NEXT;
	if (sk && (from_socket || sends_frames(sk)))
		known = find_sender(skb, &p);
	if (!known) {
		__u32 subject = subject_of_cgroup(g->cgroup);

		if (!subject && sk) /* a tap: whoever has made it */
			subject = subject_of_sender(skb);
		known = subject;
		p.subject = subject ? subject - 1 : HOST;
	}
	if (!from_socket && is_spoofed(&p.frame.flow, skb->ifindex) && deny_spoofed(&p))
		return FRAME_DROP;
	if (!known) {
		count(COUNT_TRANSIT);
		return FRAME_NEXT;
	}
	return judge_frame(skb, &p, true);
}

/* What comes from the stack behind a port. What a socket of this host sends has been judged at its cgroup. */
SEC("tc")
int bulkhead_leaving(struct __sk_buff *skb)
{
	struct guarded *g = guard_of(skb->ifindex);
	struct bpf_sock *sk = skb->sk, *full;

	if (!g)
		return FRAME_NEXT;
	if (!sk || !sends_packets(sk))
		return on_leaving(skb, g, false);
	full = bpf_sk_fullsock(sk);
	if (!full || bpf_skb_cgroup_id(skb) == KERNEL_CGROUP)
		return FRAME_NEXT;
	if (!is_judged(skb))
		return on_leaving(skb, g, false);
	/* Answers find the sockets of TCP and UDP by themselves. */
	if (!g->cgroup || ((full->protocol == IPPROTO_TCP || full->protocol == IPPROTO_UDP) && full->type != SOCK_RAW))
		return FRAME_NEXT;
	return on_leaving(skb, g, true);
}

/*
 * is_heard reports whether a socket of TCP or UDP behind the port takes the packet, which is judged there. What a connection
 * leaves behind, and what is becoming one, has no storage.
 */
static __noinline bool is_heard(struct __sk_buff *skb, const struct frame *f, __u32 netns)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk, *full;
	bool heard = true;
	__u32 size;

	if (f->type == ETH_P_IPV6) {
		copy_addr(t.ipv6.saddr, f->flow.raddr);
		copy_addr(t.ipv6.daddr, f->flow.laddr);
		t.ipv6.sport = bpf_htons(f->flow.rport);
		t.ipv6.dport = bpf_htons(f->flow.lport);
		size = sizeof(t.ipv6);
	} else {
		t.ipv4.saddr = f->flow.raddr[3];
		t.ipv4.daddr = f->flow.laddr[3];
		t.ipv4.sport = bpf_htons(f->flow.rport);
		t.ipv4.dport = bpf_htons(f->flow.lport);
		size = sizeof(t.ipv4);
	}
	if (f->flow.proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &t, size, netns, 0);
	else if (f->flow.proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &t, size, netns, 0);
	else
		return false;
	if (!sk)
		return false;
	full = bpf_sk_fullsock(sk);
	if (full)
		heard = bpf_sk_storage_get(&sockets, full, 0, 0) != NULL;
	bpf_sk_release(sk);
	return heard;
}

/* on_entering judges what goes to the stack behind the port of a unit. */
static __noinline int on_entering(struct __sk_buff *skb, struct guarded *g)
{
	struct passing p = {.key.ifindex = skb->ifindex};
	__u32 subject = subject_of_cgroup(g->cgroup);
	struct bpf_sock *sk = skb->sk;
	struct socket_state *s;

	if (!subject || read_frame(skb, &p.frame, g->raw) == FRAME_ESSENTIAL)
		return FRAME_NEXT;
	p.subject = subject - 1;
	if (g->netns != NO_NETNS && p.frame.piece != LATER_PIECE) {
		if (is_heard(skb, &p.frame, g->netns))
			return p.frame.piece != FIRST_PIECE || on_pieces(skb, &p, true) ? FRAME_NEXT : FRAME_DROP;
		/* What is late for a connection that has ended is no attempt to begin one. */
		p.quiet = p.frame.flow.proto == IPPROTO_TCP && !is_opening(&p.frame);
	}
	if (sk) {
		sk = bpf_sk_fullsock(sk);
		s = sk ? bpf_sk_storage_get(&sockets, sk, 0, 0) : NULL;
		if (s && resolved(s->word))
			p.rsubject = word_subject(s->word) + 1;
	}
	return judge_frame(skb, &p, true);
}

/* What goes to the stack behind a port. */
SEC("tc")
int bulkhead_entering(struct __sk_buff *skb)
{
	struct guarded *g = guard_of(skb->ifindex);
	struct bpf_sock *sk = skb->sk;

	if (!g)
		return FRAME_NEXT;
	if (sk && !skb->ingress_ifindex && sends_frames(sk) && on_sent(skb, g->raw) == FRAME_DROP)
		return FRAME_DROP;
	return g->cgroup ? on_entering(skb, g) : FRAME_NEXT;
}

/* What leaves the host. All but the packets of packet sockets is known by one look at its socket. */
SEC("tc")
int bulkhead_uplink(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct guarded *g;

	if (!sk || !sends_frames(sk) || skb->ingress_ifindex)
		return FRAME_NEXT;
	g = guard_of(skb->ifindex);
	return g ? on_sent(skb, g->raw) : FRAME_NEXT;
}

/* bulkhead_flush_passages ends flows that are over and tells what has passed in the others. The agent runs it as it does flush. */
SEC("syscall")
int bulkhead_flush_passages(struct flush *ctx)
{
	struct visit v = {.settings = get_config(), .now = bpf_ktime_get_ns(), .updates = ctx->updates};

	if (v.settings)
		bpf_for_each_map_elem(&passages, visit_passage, &v, 0);
	return 0;
}

#endif
