/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a frame at an interface to a flow. What the frame says counts, not what its sender told the kernel about it: who sends
 * through a packet socket may say anything.
 */
#ifndef BULKHEAD_FRAMES_H
#define BULKHEAD_FRAMES_H

#include "packet.h"

#define ETH_P_ARP 0x0806
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define ETHERNET 14
#define MAX_TAGS 2
#define IPPROTO_IGMP 2
#define NO_PROTOCOL 255 /* of what is no packet of IP; its port is the type of the frame */

/* What a frame may be. */
enum frame_kind {
	FRAME_PACKET,    /* of IP, or something that is judged as such */
	FRAME_ESSENTIAL, /* what links and addresses need */
};

enum piece {
	WHOLE,
	FIRST_PIECE,
	LATER_PIECE,
};

struct frame {
	struct flow flow;
	__u32 offset; /* of the header that comes next, in the end of the payload */
	__u32 id;     /* of a packet in fragments */
	__u16 type;
	__u8 tcp_flags;
	__u8 piece;
	__u8 leaving; /* from the local end, not to it */
	__u8 pad[3];
};

/* is_for_the_link reports whether the address is one that bridges never pass on: spanning tree, LLDP, LACP, 802.1X. */
static __always_inline bool is_for_the_link(const __u8 *mac)
{
	return mac[0] == 0x01 && mac[1] == 0x80 && mac[2] == 0xc2 && !mac[3] && !mac[4] && mac[5] <= 0x0f;
}

/* link_header finds the network header, and reports whether there is one. */
static __noinline bool link_header(struct __sk_buff *skb, struct frame *f, bool raw)
{
	__u8 h[16] = {}; /* a header of Ethernet, or a tag of a VLAN */
	int i;

	if (raw) {
		if (bpf_skb_load_bytes(skb, 0, h, 1) < 0)
			return false;
		f->type = h[0] >> 4 == 6 ? ETH_P_IPV6 : ETH_P_IP;
		return true;
	}
	if (bpf_skb_load_bytes(skb, 0, h, ETHERNET) < 0)
		return false;
	f->type = h[12] << 8 | h[13];
	f->offset = ETHERNET;
	if (f->type != ETH_P_IP && f->type != ETH_P_IPV6 && is_for_the_link(h)) {
		f->type = ETH_P_ARP;
		return true;
	}
	for (i = 0; i < MAX_TAGS && (f->type == ETH_P_8021Q || f->type == ETH_P_8021AD); i++) {
		if (bpf_skb_load_bytes(skb, f->offset, h, 4) < 0)
			return false;
		f->type = h[2] << 8 | h[3];
		f->offset += 4;
	}
	return true;
}

/* frame_extension steps over an extension header of IPv6. It returns whether there was one, or -1 if it cannot be read. */
GLOBAL int frame_extension(struct __sk_buff *skb, struct frame *f)
{
	__u8 e[8];
	__u8 proto;

	if (!f || !is_extension(f->flow.proto))
		return 0;
	if (bpf_skb_load_bytes(skb, f->offset, e, sizeof(e)) < 0)
		return -1;
	proto = f->flow.proto;
	if (proto == IPPROTO_ROUTING && e[3]) /* its destination is not where it ends */
		return -1;
	if (proto == IPPROTO_FRAGMENT) {
		f->piece = ((e[2] << 8 | e[3]) & 0xfff8) ? LATER_PIECE : (e[3] & 1) ? FIRST_PIECE : WHOLE;
		f->id = (__u32)e[4] << 24 | e[5] << 16 | e[6] << 8 | e[7];
	}
	f->offset += extension_length(proto, e[1]);
	f->flow.proto = e[0];
	return f->piece != LATER_PIECE;
}

/* packet_header fills in what the headers of IP say, and reports whether they can be read. */
static __noinline bool packet_header(struct __sk_buff *skb, struct frame *f)
{
	__u32 *src = f->leaving ? f->flow.laddr : f->flow.raddr, *dst = f->leaving ? f->flow.raddr : f->flow.laddr;
	__u32 h[HEAD / 4] = {};
	__u8 *b = (__u8 *)h;
	int i, more = 1;

	if (f->type == ETH_P_IP) {
		if (bpf_skb_load_bytes(skb, f->offset, h, 20) < 0 || b[0] >> 4 != 4 || (b[0] & 0xf) < 5)
			return false;
		map_v4(src, h[3]);
		map_v4(dst, h[4]);
		f->flow.proto = b[9];
		f->id = b[4] << 8 | b[5];
		f->piece = ((b[6] & 0x1f) << 8 | b[7]) ? LATER_PIECE : (b[6] & 0x20) ? FIRST_PIECE : WHOLE;
		f->offset += (b[0] & 0xf) * 4;
		/* Options may be a route to elsewhere; only groups need them. */
		return (b[0] & 0xf) == 5 || f->flow.proto == IPPROTO_IGMP;
	}
	if (bpf_skb_load_bytes(skb, f->offset, h, HEAD) < 0 || b[0] >> 4 != 6)
		return false;
	copy_addr(src, h + 2);
	copy_addr(dst, h + 6);
	f->flow.proto = b[6];
	f->offset += HEAD;
	for (i = 0; i < MAX_EXTENSIONS && more > 0; i++)
		more = frame_extension(skb, f);
	return more == 0;
}

/* transport_header fills in ports, and reports whether they can be read. */
static __noinline bool transport_header(struct __sk_buff *skb, struct frame *f)
{
	__u8 t[16] = {};
	__u16 src, dst;

	switch (f->flow.proto) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, f->offset, t, 14) < 0)
			return false;
		f->tcp_flags = t[13];
		f->offset += (t[12] >> 4) * 4;
		break;
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (bpf_skb_load_bytes(skb, f->offset, t, 8) < 0)
			return false;
		f->offset += f->flow.proto == IPPROTO_SCTP ? 12 : 8;
		break;
	default:
		return true; /* a protocol without ports */
	}
	if (f->flow.proto == IPPROTO_ICMP || f->flow.proto == IPPROTO_ICMPV6) {
		f->flow.port = ICMP_PORT(t[0], t[1]);
		if (is_echo(f->flow.proto, t[0]))
			f->flow.lport = t[4] << 8 | t[5];
		else /* a flow of its own */
			f->flow.rport = f->flow.port;
		return true;
	}
	src = t[0] << 8 | t[1];
	dst = t[2] << 8 | t[3];
	f->flow.lport = f->leaving ? src : dst;
	f->flow.rport = f->leaving ? dst : src;
	return true;
}

/*
 * read_frame fills in the flow as the local end sees it, without a direction; of protocols with ports its port is not known
 * before that is. What cannot be read, and what is neither IP nor needed for it, is judged as NO_PROTOCOL.
 */
GLOBAL int read_frame(struct __sk_buff *skb, struct frame *f, bool raw)
{
	if (!f)
		return FRAME_ESSENTIAL;
	if (link_header(skb, f, raw)) {
		if (f->type == ETH_P_ARP)
			return FRAME_ESSENTIAL;
		if ((f->type == ETH_P_IP || f->type == ETH_P_IPV6) && packet_header(skb, f)) {
			if (f->piece == LATER_PIECE)
				return FRAME_PACKET;
			if (transport_header(skb, f))
				return (f->flow.proto == IPPROTO_ICMP || f->flow.proto == IPPROTO_ICMPV6) &&
						       fixed_essential(f->flow.proto, f->flow.port)
					       ? FRAME_ESSENTIAL
					       : FRAME_PACKET;
		}
	}
	f->flow.proto = NO_PROTOCOL;
	f->flow.port = f->type;
	f->flow.rport = f->type; /* each type is a flow of its own */
	f->piece = WHOLE;
	return FRAME_PACKET;
}

#endif
