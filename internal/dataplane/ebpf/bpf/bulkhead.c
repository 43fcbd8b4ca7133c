/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Bulkhead's programs for one host. Those at the cgroup judge every packet that a socket of the host sends or
 * receives; the others learn whose sockets they are, when connections end, and let the agent act on them.
 */
#include "guard.h"
#include "iterators.h"
#include "names.h"
#include "routed.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

static __always_inline int on_other_packet(struct __sk_buff *skb, bool egress)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	if (sk->protocol != IPPROTO_TCP || sk->type == SOCK_RAW)
		return on_datagram(skb, sk, egress) ? 1 : 0;
	if (sk->state == TCP_LISTEN)
		return on_listener(skb, sk, egress) ? 1 : 0;
	return on_connection(skb, sk, egress) ? 1 : 0;
}

/* on_packet decides on packets like which others have been judged before: most of all packets there are. */
static __always_inline int on_packet(struct __sk_buff *skb, bool egress)
{
	struct bpf_sock *sk = skb->sk;
	struct socket_state *s;
	__u64 word, state;
	int becomes;
	__u32 gen;

	if (!sk)
		return 1;
	if (egress && may_be_routed(skb) && !on_routed(skb))
		return 0;
	becomes = lately(skb, sk, egress);
	if (becomes != UNHEARD)
		return becomes == MAY_PASS;
	/* A socket of datagrams without a peer is in this state, and is not looked up in vain. */
	s = sk->state == TCP_CLOSE ? NULL : bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (s) {
		gen = generation();
		word = READ_ONCE(s->word);
		state = state_of(word_subject(word));
		/* Only words of connections are judged; that of a listener may still be of one. */
		if ((word & FLOW_JUDGED) && (word & FLOW_VERDICT) != DENY && resolved_by(word, state) && sk->state != TCP_LISTEN) {
			if (can_recall() && sk->state == TCP_ESTABLISHED && !((__u32)state & SUBJECT_EXCEPTIONS))
				remember_connection(skb, gen);
			return 1;
		}
	}
	return on_other_packet(skb, egress) ? 1 : 0;
}

SEC("cgroup_skb/ingress")
int bulkhead_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, false);
}

SEC("cgroup_skb/egress")
int bulkhead_egress(struct __sk_buff *skb)
{
	return on_packet(skb, true);
}

/* A new socket: who made it, and in which cgroup. */
SEC("cgroup/sock_create")
int bulkhead_sock_create(struct bpf_sock *sk)
{
	struct socket_state *s = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (s)
		begin_socket(s);
	return 1;
}

/* A socket without a fixed peer is closed: what it was doing last has ended. */
SEC("cgroup/sock_release")
int bulkhead_sock_release(struct bpf_sock *sk)
{
	struct connection_key key = {};
	struct socket_state *s;
	struct connection *c;

	if (sk->protocol == IPPROTO_TCP)
		return 1;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!s || !s->flow.proto)
		return 1;
	key.cookie = bpf_get_socket_cookie(sk);
	copy_addr(key.raddr, s->flow.raddr);
	key.rport = s->flow.rport;
	key.lport = s->flow.lport;
	key.proto = s->flow.proto;
	c = bpf_map_lookup_elem(&connections, &key);
	if (c)
		end_connection(&key, c);
	if (!sk->dst_port || s->flow.dir != OUT)
		return 1;
	/* The flow that the socket's peer answered, if that was translated. */
	if (is_v4(s->flow.raddr))
		map_v4(key.raddr, sk->dst_ip4);
	else
		copy_addr(key.raddr, sk->dst_ip6);
	key.rport = bpf_ntohs(sk->dst_port);
	c = bpf_map_lookup_elem(&connections, &key);
	if (c)
		end_connection(&key, c);
	return 1;
}

/* refresh notes which process uses the socket, which need not be the one that made it. */
static __always_inline void refresh(struct socket_state *s)
{
	if (!is_current(&s->process))
		current_process(&s->process);
}

/*
 * on_connect denies at once, with an error that the program sees; without it a denied connection would only time out.
 * What it cannot tell for certain it leaves to the first packet. Only TCP: a datagram socket is often connected only
 * to learn an address, and its first datagram fails at once anyway.
 */
static __noinline int on_connect(struct bpf_sock_addr *ctx, struct flow *f)
{
	struct settings *cfg = get_config();
	struct bpf_sock_tuple t = {};
	struct decision d = {};
	struct socket_state *s;
	struct bpf_sock *peer;
	__u32 subject, size, gen = generation();
	__u64 old, state;
	bool known, loopback;

	if (!ctx->sk || !cfg)
		return 1;
	s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	if (!s)
		return 1;
	refresh(s);
	if (ctx->protocol != IPPROTO_TCP) {
		if (can_recall())
			uses_still(ctx->sk);
		return 1;
	}
	old = READ_ONCE(s->word);
	if (can_recall() && (old & FLOW_JUDGED))
		forget_connection(ctx->sk);
	s->sent = 0;
	s->received = 0;
	if (resolved(old) && !processes_matter()) {
		subject = word_subject(old);
	} else if (s->cgroup == bpf_get_current_cgroup_id()) {
		subject = subject_of_task();
	} else {
		/* Nothing may be left of what the socket was connected to before. */
		WRITE_ONCE(s->word, make_word(0, 0, FLOW_DIR | FLOW_OUT));
		return 1;
	}
	state = as_of(state_of(subject), gen);
	WRITE_ONCE(s->word, make_word(state_gen(state), subject, FLOW_DIR | FLOW_OUT));
	if ((__u32)state & SUBJECT_LOCAL_SETS)
		return 1;

	f->proto = IPPROTO_TCP;
	f->dir = OUT;
	f->rport = bpf_ntohs(ctx->user_port);
	f->port = f->rport;
	f->lport = ctx->sk->src_port;
	if (is_v4(f->raddr)) {
		if (!f->raddr[3]) /* any address is this host */
			f->raddr[3] = bpf_htonl(0x7f000001);
		map_v4(f->laddr, ctx->sk->src_ip4);
		t.ipv4.daddr = f->raddr[3];
		t.ipv4.dport = ctx->user_port;
		size = sizeof(t.ipv4);
	} else {
		if (!(f->raddr[0] | f->raddr[1] | f->raddr[2] | f->raddr[3]))
			f->raddr[3] = bpf_htonl(1);
		f->laddr[0] = ctx->sk->src_ip6[0];
		f->laddr[1] = ctx->sk->src_ip6[1];
		f->laddr[2] = ctx->sk->src_ip6[2];
		f->laddr[3] = ctx->sk->src_ip6[3];
		copy_addr(t.ipv6.daddr, f->raddr);
		t.ipv6.dport = ctx->user_port;
		size = sizeof(t.ipv6);
	}
	loopback = is_loopback(f->raddr);
	known = bpf_get_netns_cookie(ctx) == cfg->own_netns;

	if (loopback || !known || bpf_map_lookup_elem(&own, f->raddr)) {
		struct socket_state *ps;

		peer = bpf_sk_lookup_tcp(ctx, &t, size, BPF_F_CURRENT_NETNS, 0);
		if (peer) {
			__u64 word = 0;

			ps = bpf_sk_storage_get(&sockets, peer, 0, 0);
			if (ps)
				word = READ_ONCE(ps->word);
			bpf_sk_release(peer);
			if ((!known && !loopback) || !resolved(word))
				return 1;
			d.rsubject = word_subject(word) + 1;
		}
	}
	d.unit = unit_of_task();
	state = decide(f, subject, state, gen, &s->process, &d);
	if (d.verdict == DENY) {
		deny_attempt(f, &d, &s->process, subject, 0);
		return 0;
	}
	s->rule = d.rule;
	s->peer = d.peer;
	s->rsubject = d.rsubject;
	s->flow = *f;
	WRITE_ONCE(s->word, make_word(state_gen(state), subject, FLOW_DIR | FLOW_OUT | FLOW_CONNECT | (d.named ? FLOW_NAMED : 0) | d.verdict));
	return 1;
}

SEC("cgroup/connect4")
int bulkhead_connect4(struct bpf_sock_addr *ctx)
{
	struct flow f = {};

	map_v4(f.raddr, ctx->user_ip4);
	return on_connect(ctx, &f) ? 1 : 0;
}

SEC("cgroup/connect6")
int bulkhead_connect6(struct bpf_sock_addr *ctx)
{
	struct flow f = {};

	f.raddr[0] = ctx->user_ip6[0];
	f.raddr[1] = ctx->user_ip6[1];
	f.raddr[2] = ctx->user_ip6[2];
	f.raddr[3] = ctx->user_ip6[3];
	return on_connect(ctx, &f) ? 1 : 0;
}

static __always_inline int on_sendmsg(struct bpf_sock_addr *ctx)
{
	struct socket_state *s;

	if (!ctx->sk || (can_recall() && uses_still(ctx->sk)))
		return 1;
	s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	if (s)
		refresh(s);
	return 1;
}

SEC("cgroup/sendmsg4")
int bulkhead_sendmsg4(struct bpf_sock_addr *ctx)
{
	return on_sendmsg(ctx);
}

SEC("cgroup/sendmsg6")
int bulkhead_sendmsg6(struct bpf_sock_addr *ctx)
{
	return on_sendmsg(ctx);
}

/*
 * bulkhead_flush tells folded denials, ends silent flows and tells what has passed in the others. The agent runs it
 * about once a second.
 */
SEC("syscall")
int bulkhead_flush(struct flush *ctx)
{
	struct visit v = {.settings = get_config(), .now = bpf_ktime_get_ns(), .updates = ctx->updates};

	bpf_for_each_map_elem(&recent_flows, gather_place, NULL, 0);
	bpf_for_each_map_elem(&denials, flush_denial, NULL, 0);
	if (v.settings)
		bpf_for_each_map_elem(&connections, visit_connection, &v, 0);
	if (v.settings && v.updates)
		forget_names(NAME_KEPT);
	return 0;
}

/* bulkhead_probe answers, in the map probe, what the verdict on a flow would be. Only tests load it. */
SEC("cgroup_skb/egress")
int bulkhead_probe(struct __sk_buff *skb)
{
	struct decision d = {};
	struct settings *c = get_config();
	struct process who = {};
	__u32 zero = 0, gen;
	struct probe *p = bpf_map_lookup_elem(&probes, &zero);
	struct flow f;

	if (!p)
		return 0;
	f = p->flow;
	d.rsubject = p->rsubject;
	who.tgid = p->user != ~0u;
	who.uid = p->user;
	who.path = p->path;
	who.paths = c ? c->paths : 0;
	d.unit = p->unit;
	if (p->recall) {
		gen = generation();
		p->recalled = !d.rsubject && recall(&f, p->subject, state_of(p->subject), gen, &d);
		decide(&f, p->subject, state_of(p->subject), gen, &who, &d);
	} else {
		judge(&f, p->subject, &who, &d);
	}
	p->decision = d;
	return 1;
}
