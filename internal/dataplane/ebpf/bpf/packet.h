/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a packet at a cgroup to a flow. */
#ifndef BULKHEAD_PACKET_H
#define BULKHEAD_PACKET_H

#include "judge.h"

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* What of a packet is not part of its flow. */
struct details {
	__u32 payload; /* offset of what follows the transport header */
	__u32 seq;     /* TCP */
	__u8 tcp_flags;
	__u8 pad[3];
};

static __always_inline void map_v4(__u32 *to, __u32 addr)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = addr;
}

static __always_inline bool is_v4(const __u32 *addr)
{
	return !addr[0] && !addr[1] && addr[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_loopback(const __u32 *addr)
{
	if (is_v4(addr))
		return (addr[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !addr[0] && !addr[1] && !addr[2] && addr[3] == bpf_htonl(1);
}

static __always_inline bool is_echo(__u8 proto, __u8 type)
{
	return proto == IPPROTO_ICMP ? type == 8 || type == 0 : type == 128 || type == 129;
}

/* How much of a packet is read at once: an IPv6 header, or an IPv4 header without options and what ports are in. */
#define HEAD 40

#define MAX_EXTENSIONS 8

/* is_extension reports whether the number is of a header of IPv6 that another one follows. */
static __always_inline bool is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_FRAGMENT || proto == IPPROTO_AH ||
	       proto == IPPROTO_DSTOPTS || proto == IPPROTO_MH;
}

static __always_inline __u32 extension_length(__u8 proto, __u8 length)
{
	switch (proto) {
	case IPPROTO_FRAGMENT:
		return 8;
	case IPPROTO_AH:
		return (length + 2) * 4;
	}
	return (length + 1) * 8;
}

/* Where the headers of a packet have been read up to. */
struct cursor {
	__u32 offset; /* of the header that comes next, */
	__u8 proto;   /* and its protocol */
	__u8 fragment; /* it is not there: this is a fragment other than the first */
	__u8 pad[2];
};

/* skip_extension steps over an extension header. It returns whether there was one, or -1 if it cannot be read. */
GLOBAL int skip_extension(struct __sk_buff *skb, struct cursor *c)
{
	__u8 e[4];

	if (!c || !is_extension(c->proto))
		return 0;
	if (bpf_skb_load_bytes(skb, c->offset, e, 4) < 0)
		return -1;
	c->fragment |= c->proto == IPPROTO_FRAGMENT && ((e[2] << 8 | e[3]) & 0xfff8) != 0;
	c->offset += extension_length(c->proto, e[1]);
	c->proto = e[0];
	return !c->fragment;
}

/*
 * network_header fills in addresses and protocol from the head of the packet and returns the offset of the transport
 * header, or -1 if the packet cannot be read. A fragment other than the first has none: *fragment is set.
 */
static __always_inline int network_header(struct __sk_buff *skb, const __u32 *h, struct flow *f, bool egress, bool *fragment)
{
	__u32 *src = egress ? f->laddr : f->raddr, *dst = egress ? f->raddr : f->laddr;
	const __u8 *b = (const __u8 *)h;
	struct cursor c = {};
	int i, more = 1;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		map_v4(src, h[3]);
		map_v4(dst, h[4]);
		f->proto = b[9];
		*fragment = ((b[6] & 0x1f) << 8 | b[7]) != 0;
		return (b[0] & 0xf) * 4;
	}
	copy_addr(src, h + 2);
	copy_addr(dst, h + 6);
	c.proto = b[6];
	c.offset = HEAD;
	for (i = 0; i < MAX_EXTENSIONS && more > 0; i++)
		more = skip_extension(skb, &c);
	f->proto = c.proto;
	*fragment = c.fragment;
	return more == 0 ? (int)c.offset : -1;
}

/*
 * read_packet fills in the flow as this end sees it, with the destination port of the packet, and returns false if the
 * packet cannot be read as far as its ports.
 */
GLOBAL int read_packet(struct __sk_buff *skb, struct flow *f, bool egress, struct details *d)
{
	bool v4 = skb->protocol == bpf_htons(ETH_P_IP), fragment = false;
	const __u32 *head = (const __u32 *)(long)skb->data;
	__u32 copy[HEAD / 4] = {}, got = HEAD;
	__u16 src, dst;
	__u8 t[14];
	int off;

	if (!f || !d || (!v4 && skb->protocol != bpf_htons(ETH_P_IPV6)))
		return false;
	if ((const __u8 *)head + HEAD > (const __u8 *)(long)skb->data_end) {
		/* Headers may be in fragments of the buffer, and a packet of IPv4 may be shorter than an IPv6 header. */
		got = skb->len >= HEAD ? HEAD : v4 && skb->len >= 28 ? 28 : 20;
		if ((got != HEAD && !v4) || bpf_skb_load_bytes(skb, 0, copy, got) < 0)
			return false;
		head = copy;
	}
	off = network_header(skb, head, f, egress, &fragment);
	if (off < 0 || fragment)
		return false;
	d->payload = off;
	switch (f->proto) {
	case IPPROTO_TCP:
		if (v4 && off == 20 && got == HEAD)
			__builtin_memcpy(t, head + 5, 14);
		else if (bpf_skb_load_bytes(skb, off, t, 14) < 0)
			return false;
		d->seq = (__u32)t[4] << 24 | t[5] << 16 | t[6] << 8 | t[7];
		d->tcp_flags = t[13];
		d->payload = off + (t[12] >> 4) * 4;
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (v4 && off == 20 && got >= 28)
			__builtin_memcpy(t, head + 5, 8);
		else if (bpf_skb_load_bytes(skb, off, t, 8) < 0)
			return false;
		d->payload = off + (f->proto == IPPROTO_SCTP ? 12 : 8);
		break;
	default:
		return true; /* a protocol without ports */
	}
	if (f->proto == IPPROTO_ICMP || f->proto == IPPROTO_ICMPV6) {
		f->port = ICMP_PORT(t[0], t[1]);
		if (is_echo(f->proto, t[0]))
			f->lport = t[4] << 8 | t[5];
		return true;
	}
	src = t[0] << 8 | t[1];
	dst = t[2] << 8 | t[3];
	f->lport = egress ? src : dst;
	f->rport = egress ? dst : src;
	f->port = dst;
	return true;
}

#endif
