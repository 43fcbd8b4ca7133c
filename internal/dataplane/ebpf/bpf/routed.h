/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets that say by themselves where they go on from their destination: source routes of IPv4 (RFC 791) and routing
 * headers of IPv6 (RFC 8200, 8754). The header names the next host only, so both are judged: that one like any packet's
 * destination, and here where the packet is to end. Any process may send them; hardly anybody does.
 */
#ifndef BULKHEAD_ROUTED_H
#define BULKHEAD_ROUTED_H

#include "socket.h"

#define IPOPT_END 0
#define IPOPT_NOOP 1
#define IPOPT_LSRR 131
#define IPOPT_SSRR 137
#define IP_OPTIONS 40 /* bytes, at most */
#define RH_HOME 2     /* types of routing headers */
#define RH_SEGMENTS 4

/* may_be_routed reports whether the packet has headers that could hold a route: hardly any has. */
static __always_inline bool may_be_routed(struct __sk_buff *skb)
{
	const __u8 *h = (const __u8 *)(long)skb->data;

	if (h + 7 > (const __u8 *)(long)skb->data_end)
		return true;
	return h[0] != 0x45 && (h[0] >> 4 != 6 || is_extension(h[6]));
}

/* route_option finds the end of a source route of IPv4. It returns how many hosts are still to come after the next one. */
static __always_inline int route_option(struct __sk_buff *skb, __u32 *end)
{
	__u8 o[IP_OPTIONS + 2] = {}, head;
	__u32 length, last, i, at = 0, skip = 0;

	if (bpf_skb_load_bytes(skb, 0, &head, 1) < 0)
		return 0;
	length = (head & 0xf) * 4;
	if (length <= 20 || length > 20 + IP_OPTIONS || bpf_skb_load_bytes(skb, 20, o, length - 20) < 0)
		return 0;
	/* Unrolled, the loop is checked in no time. What is behind the options is zero, which ends them. */
#pragma unroll
	for (i = 0; i < IP_OPTIONS; i++) {
		if (skip) {
			skip--;
			continue;
		}
		at = i;
		if (o[i] == IPOPT_NOOP)
			continue;
		if (o[i] == IPOPT_END || o[i] == IPOPT_LSRR || o[i] == IPOPT_SSRR || o[i + 1] < 2)
			break;
		skip = o[i + 1] - 1;
	}
	if (at >= IP_OPTIONS || (o[at] != IPOPT_LSRR && o[at] != IPOPT_SSRR))
		return 0;
	/* Behind its length it says where the next address is, counted from 1 at its beginning. */
	length = o[at + 1];
	if (length < 7 || o[at + 2] < 4 || o[at + 2] > length - 3 || bpf_skb_load_bytes(skb, 20 + at + length - 4, &last, 4) < 0)
		return 0;
	map_v4(end, last);
	return (int)((length - o[at + 2] + 1) / 4);
}

/* routing_header does the same for IPv6. */
static __always_inline int routing_header(struct __sk_buff *skb, __u32 *end)
{
	struct cursor c = {.offset = HEAD};
	__u32 at, i;
	__u8 h[4];

	if (bpf_skb_load_bytes(skb, 6, &c.proto, 1) < 0)
		return 0;
	for (i = 0; i < MAX_EXTENSIONS; i++) {
		if (c.proto == IPPROTO_ROUTING) {
			if (bpf_skb_load_bytes(skb, c.offset, h, 4) < 0 || !h[3])
				return 0;
			/* Types 0 and 2 end with the last of their addresses, segments with the first; of others nobody knows. */
			at = h[2] == RH_SEGMENTS ? c.offset + 8 : c.offset + h[1] * 8 - 8;
			if ((h[2] && h[2] != RH_HOME && h[2] != RH_SEGMENTS) || bpf_skb_load_bytes(skb, at, end, 16) < 0)
				return 2;
			return h[3];
		}
		if (skip_extension(skb, &c) <= 0)
			return 0;
	}
	return 0;
}

/*
 * route_of fills in where the packet is to end and reports whether that is elsewhere than its header says. Where other
 * hosts are on the way, or it cannot be known, that is the unspecified address, which no workload has.
 */
GLOBAL int route_of(struct __sk_buff *skb, struct flow *f)
{
	bool v4 = skb->protocol == bpf_htons(ETH_P_IP);
	__u32 end[4] = {};
	int hosts;

	if (!f)
		return false;
	hosts = v4 ? route_option(skb, end) : routing_header(skb, end);
	if (hosts <= 0)
		return false;
	if (hosts > 1) {
		end[0] = 0;
		end[1] = 0;
		end[2] = v4 ? bpf_htonl(0xffff) : 0;
		end[3] = 0;
	}
	copy_addr(f->raddr, end);
	return true;
}

/* on_routed judges where a packet of the socket is to end, if its header does not say. It returns whether it may go there. */
static __noinline bool on_routed(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct details details = {};
	struct decision d = {};
	struct socket_state *s;
	struct flow f = {};
	__u64 word;
	__u32 subject;

	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	if (!sk || bpf_sk_cgroup_id(sk) == KERNEL_CGROUP)
		return true;
	if (!read_packet(skb, &f, true, &details))
		f.port = 0;
	if (!route_of(skb, &f))
		return true;
	f.dir = OUT;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	word = s ? READ_ONCE(s->word) : 0;
	subject = resolved(word) ? word_subject(word) : subject_of_socket(sk);
	d.unit = unit_of_socket(sk);
	judge(&f, subject, s ? &s->process : NULL, &d);
	if (d.verdict != DENY)
		return true;
	deny_attempt(&f, &d, s ? &s->process : NULL, subject, 0);
	count(COUNT_DROPPED);
	return false;
}

#endif
