/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Everything that is not TCP in a TCP socket: UDP, ICMP of ping and raw sockets, other protocols. One socket may talk
 * to many peers, so flows are kept in a map. Whoever sent the first packet opened the flow; what comes back belongs
 * to it. Denied flows are not kept: a flood of them must not push out those that are allowed.
 */
#ifndef BULKHEAD_CONNECTIONS_H
#define BULKHEAD_CONNECTIONS_H

#include "learnt.h"
#include "recent.h"

static const struct connection no_connection;

/*
 * take returns what has been counted since the last event. Only one caller gets each byte: the totals told are
 * raised by compare-and-swap.
 */
static __always_inline __u64 take(__u64 *told, __u64 total)
{
	__u64 old = READ_ONCE(*told);

	if (total <= old || __sync_val_compare_and_swap(told, old, total) != old)
		return 0;
	return total - old;
}

static __noinline void describe_connection(struct event *e, const struct connection_key *k, struct connection *c)
{
	__u64 word = READ_ONCE(c->word);

	e->rule = c->rule;
	e->peer = c->peer;
	e->rsubject = c->rsubject;
	e->process = c->process;
	copy_addr(e->flow.laddr, c->laddr);
	copy_addr(e->flow.raddr, k->raddr);
	e->flow.proto = k->proto;
	e->flow.lport = k->lport;
	e->flow.rport = k->rport;
	e->flow.port = c->port;
	e->flow.dir = word & FLOW_OUT ? OUT : IN;
}

static __always_inline void count_connection(struct event *e, struct connection *c)
{
	e->sent = take(&c->told_sent, READ_ONCE(c->sent));
	e->received = take(&c->told_received, READ_ONCE(c->received));
	e->packets_sent = take(&c->told_packets_sent, READ_ONCE(c->packets_sent));
	e->packets_received = take(&c->told_packets_received, READ_ONCE(c->packets_received));
}

/*
 * end_connection forgets a flow and tells that it ended. Whoever deletes the entry tells; the event is written before,
 * for a deleted entry may belong to another flow at once.
 */
static __noinline bool end_connection(const struct connection_key *key, struct connection *c)
{
	__u64 word = READ_ONCE(c->word);
	struct event *e = word & FLOW_OPENED ? new_event(EVENT_CLOSE, word) : NULL;
	struct connection_key copy; /* a map's key is no memory to a function that is checked by itself */

	if (!e)
		return bpf_map_delete_elem(&connections, key) == 0;
	copy = *key;
	gather_all(&copy, c);
	describe_connection(e, key, c);
	e->sent = READ_ONCE(c->sent) - READ_ONCE(c->told_sent);
	e->received = READ_ONCE(c->received) - READ_ONCE(c->told_received);
	e->packets_sent = READ_ONCE(c->packets_sent) - READ_ONCE(c->told_packets_sent);
	e->packets_received = READ_ONCE(c->packets_received) - READ_ONCE(c->told_packets_received);
	if (bpf_map_delete_elem(&connections, key) != 0) {
		bpf_ringbuf_discard(e, 0);
		return false;
	}
	submit(e);
	return true;
}

static __always_inline bool expired(const struct connection *c, __u64 now, const struct settings *cfg)
{
	__u64 last = READ_ONCE(c->last);

	return now > last && now - last > (c->replied ? cfg->replied : cfg->unreplied);
}

/* What a visit to all connections needs. */
struct visit {
	struct settings *settings;
	__u64 now;
	bool updates;
};

/*
 * visit_connection ends a flow that has been silent for too long, or tells what has passed in it. Neither is urgent: if
 * there is no room to tell it, the next visit does.
 */
static long visit_connection(struct bpf_map *map, struct connection_key *key, struct connection *c, struct visit *v)
{
	__u64 word = READ_ONCE(c->word);
	struct event *e;

	if (!word)
		return 0;
	if (expired(c, v->now, v->settings)) {
		if (has_room())
			end_connection(key, c);
		return 0;
	}
	if (v->updates && (word & FLOW_NAMED))
		touch_names(key->raddr);
	if (!v->updates || !(word & FLOW_OPENED) ||
	    (READ_ONCE(c->packets_sent) == READ_ONCE(c->told_packets_sent) &&
	     READ_ONCE(c->packets_received) == READ_ONCE(c->told_packets_received)))
		return 0;
	e = new_update(word);
	if (!e)
		return 0;
	describe_connection(e, key, c);
	count_connection(e, c);
	submit(e);
	return 0;
}

/*
 * seems_served guesses who opened a flow that went on before the dataplane was there: a socket with a port that is
 * not handed out to clients answers one that is.
 */
static __always_inline bool seems_served(__u64 socket_word, const struct flow *f, __u64 now)
{
	struct settings *cfg = get_config();

	return (socket_word & FLOW_EXISTING) && f->proto == IPPROTO_UDP && f->lport < 32768 && f->rport >= 32768 && cfg &&
	       now - cfg->installed < cfg->replied;
}

/* pass counts a packet of a flow that may go on. */
static __noinline bool pass(struct __sk_buff *skb, struct connection *c, const struct details *details, bool egress,
			    __u64 now)
{
	__u32 size = skb->len > details->payload ? skb->len - details->payload : 0;

	if (now - c->last > SECOND / 8)
		WRITE_ONCE(c->last, now);
	if (egress) {
		__sync_fetch_and_add(&c->sent, size);
		__sync_fetch_and_add(&c->packets_sent, 1);
	} else {
		__sync_fetch_and_add(&c->received, size);
		__sync_fetch_and_add(&c->packets_received, 1);
	}
	if (!c->replied && egress != !!(READ_ONCE(c->word) & FLOW_OUT))
		c->replied = 1;
	return true;
}

/* settle_connection records a decision for an entry whose word was old and tells about it once; see settle. */
static __noinline __u64 settle_connection(struct connection *c, __u64 old, __u64 new, const struct flow *f,
					  const struct decision *d)
{
	bool changed = !(old & FLOW_SEEN) || (old & FLOW_VERDICT) != d->verdict || c->rule != d->rule ||
		       word_subject(old) != word_subject(new);
	__u32 flags = 0;
	__u64 seen;

	new = (new & ~(__u64)(FLOW_VERDICT | FLOW_LOOP)) | d->verdict | FLOW_JUDGED | FLOW_DIR;
	if (d->rsubject)
		new |= FLOW_LOOP;
	if (d->named)
		new |= FLOW_NAMED;
	if (before_policy(d))
		new |= FLOW_EXISTING;
	else
		new |= d->verdict != DENY ? FLOW_SEEN | FLOW_OPENED : FLOW_SEEN;
	seen = __sync_val_compare_and_swap(&c->word, old, new);
	if (seen != old)
		return seen;
	c->rule = d->rule;
	c->peer = d->peer;
	c->rsubject = d->rsubject;
	c->judged = bpf_ktime_get_coarse_ns();
	if (!changed || before_policy(d))
		return new;
	if (old & FLOW_OPENED)
		flags |= EVENT_REJUDGED;
	if (new & FLOW_EXISTING)
		flags |= EVENT_EXISTING;
	tell_verdict(f, d, &c->process, new, flags);
	return new;
}

/* A packet of a socket without a fixed peer, and the key of its flow. */
struct datagram {
	struct flow flow;
	struct details details;
	struct connection_key key;
	bool egress;
	bool guessed; /* who opened the flow */
	__u32 openings; /* of the socket, before it was known that the packet belongs to none of its flows */
};

/* new_connection makes an entry for a flow that may go on. */
static __noinline struct connection *new_connection(struct datagram *p, struct socket_state *s)
{
	struct connection *c;

	bpf_map_update_elem(&connections, &p->key, &no_connection, BPF_NOEXIST);
	c = bpf_map_lookup_elem(&connections, &p->key);
	if (can_recall())
		count_opening(p->key.cookie);
	if (!c || READ_ONCE(c->word))
		return c;
	/* Two processors may both come here with the same packet's siblings, and write the same. */
	copy_addr(c->laddr, p->flow.laddr);
	c->port = p->flow.port;
	c->last = bpf_ktime_get_coarse_ns();
	if (s) {
		c->process = s->process;
		if (p->egress || p->flow.dir == IN) /* else it is what answers_asked found: known from the socket's peer */
			s->flow = p->flow;
	}
	return c;
}

/*
 * depends_on_kind reports whether all that the verdict on a datagram depends on, in a generation of its subject, is in the key
 * of its denial: no socket at the other end, process, local address, name or guess counts, nor an exception, which ends by itself.
 */
static __noinline bool depends_on_kind(struct __sk_buff *skb, struct bpf_sock *sk, const struct datagram *p,
				       const struct socket_state *s, __u64 state)
{
	return s && !(READ_ONCE(s->word) & FLOW_EXISTING) && skb->ifindex != LOOPBACK_IFINDEX && sk->type != SOCK_RAW &&
	       !((__u32)state & SUBJECT_LOCAL_SETS) && !exception(state) && !processes_matter() &&
	       !(p->flow.dir == OUT && epoch_at(generation()));
}

/*
 * denied_before drops a datagram of a kind that has just been denied, without judging it again: a flood of them must cost no
 * more than one that may pass.
 */
static __noinline bool denied_before(struct __sk_buff *skb, struct bpf_sock *sk, struct socket_state *s, struct datagram *p,
				   __u64 now)
{
	__u32 gen = generation(); /* before what is true in it */
	__u64 word = s ? READ_ONCE(s->word) : 0, state = state_of(word_subject(word));
	struct denial_key key = {.gen = word_gen(word)};
	struct denial *v;

	if (!key.gen || key.gen != state_gen(state) || !depends_on_kind(skb, sk, p, s, state))
		return false;
	denial_kind(&key, &p->flow, &s->process, word_subject(word));
	v = bpf_map_lookup_elem(&denials, &key);
	if (!v || !READ_ONCE(v->filled))
		return false;
	if (!denial_due(READ_ONCE(v->state), now) && add_pending(v, 1))
		count(COUNT_DENIED);
	else
		fold(v, &p->flow, &v->decision, &s->process, key.subject);
	count(COUNT_DROPPED);
	if (can_recall() && sk->protocol == IPPROTO_UDP && !((__u32)state & SUBJECT_EXCEPTIONS))
		remember_denied(&p->key, &key, gen, p->openings);
	return true;
}

/*
 * judge_datagram is the slow path: the flow is new (c is NULL), or its verdict is of another generation. It returns
 * whether the packet may pass.
 */
static __noinline bool judge_datagram(struct __sk_buff *skb, struct bpf_sock *sk, struct socket_state *s,
				      struct datagram *p, struct connection *c)
{
	__u64 old = c ? READ_ONCE(c->word) : 0, socket_word = s ? READ_ONCE(s->word) : 0, state, new;
	__u32 subject, flags, gen = generation();
	struct decision d = {};

	subject = resolved(socket_word) ? word_subject(socket_word) : subject_of_socket(sk);
	if (skb->ifindex == LOOPBACK_IFINDEX)
		d.rsubject = peer_on_host(skb, &p->flow);
	if (c && !d.rsubject && resolved(old)) /* the peer has closed its socket meanwhile */
		d.rsubject = c->rsubject;
	d.was_named = !!(old & FLOW_NAMED);
	d.unit = unit_of_socket(sk);
	state = as_of(judge(&p->flow, subject, s ? &s->process : NULL, &d), gen);
	if (s && !resolved(socket_word))
		set_word(&s->word, socket_word, make_word(state_gen(state), subject, socket_word & 0xffff));
	if (!c) {
		/* A raw socket's copy of a packet is not a flow of its own. */
		bool copy = sk->type == SOCK_RAW && !p->egress;

		if (d.verdict == DENY && !copy)
			deny_attempt(&p->flow, &d, s ? &s->process : NULL, subject,
				     state && depends_on_kind(skb, sk, p, s, state) ? state_gen(state) : 0);
		if (d.verdict == DENY || copy)
			return d.verdict != DENY;
		c = new_connection(p, s);
		if (!c) {
			count(COUNT_ERRORS);
			return true;
		}
		old = READ_ONCE(c->word);
	}
	flags = (old & (FLOW_OPENED | FLOW_SEEN | FLOW_EXISTING)) | (p->flow.dir == OUT ? FLOW_OUT : 0);
	if (p->guessed)
		flags |= FLOW_EXISTING;
	new = settle_connection(c, old, make_word(state_gen(state), subject, flags), &p->flow, &d);
	return (new & FLOW_VERDICT) != DENY;
}

/* is_peer reports whether the socket is connected to where the packet's other end is. */
static __always_inline bool is_peer(struct bpf_sock *sk, const struct flow *f)
{
	if (bpf_ntohs(sk->dst_port) != f->rport)
		return false;
	if (is_v4(f->raddr))
		return sk->dst_ip4 == f->raddr[3];
	return sk->dst_ip6[0] == f->raddr[0] && sk->dst_ip6[1] == f->raddr[1] && sk->dst_ip6[2] == f->raddr[2] &&
	       sk->dst_ip6[3] == f->raddr[3];
}

/*
 * answers_asked reports whether a datagram may answer one whose destination this host has translated: it comes from the
 * address that the socket is connected to, and what the socket has sent went elsewhere, and was allowed. Then it belongs
 * to a flow to the address that was asked, which has to be allowed as such, like that of a connection.
 */
static __noinline bool answers_asked(struct bpf_sock *sk, const struct datagram *p, const struct socket_state *s)
{
	struct connection_key key = {.cookie = p->key.cookie, .lport = p->key.lport, .proto = IPPROTO_UDP};
	struct connection *c;
	__u64 word;

	if (!s || p->key.proto != IPPROTO_UDP || s->flow.proto != IPPROTO_UDP || s->flow.dir != OUT || s->flow.lport != p->key.lport ||
	    !is_peer(sk, &p->flow))
		return false;
	copy_addr(key.raddr, s->flow.raddr);
	key.rport = s->flow.rport;
	c = bpf_map_lookup_elem(&connections, &key);
	word = c ? READ_ONCE(c->word) : 0;
	if (!(word & FLOW_OUT) || (word & FLOW_VERDICT) == DENY)
		return false;
	c->replied = 1;
	return true;
}

/*
 * on_new_datagram judges a packet that belongs to no flow, or to one that must be judged again (c).
 */
static __always_inline bool on_new_datagram(struct __sk_buff *skb, struct bpf_sock *sk, struct datagram *p,
					    struct connection *c, __u64 now)
{
	struct socket_state *s = bpf_sk_storage_get(&sockets, sk, 0, 0);

	if (!s) {
		/* What the kernel sends for itself: resets, ICMP, neighbour discovery. */
		if (sk->type == SOCK_RAW && bpf_sk_cgroup_id(sk) == KERNEL_CGROUP)
			return true;
		s = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!s) /* no memory: it is judged all the same */
			count(COUNT_ERRORS);
	}
	if (!c) {
		p->openings = can_recall() ? openings_of(p->key.cookie) : 0;
		p->guessed = p->egress && s && seems_served(s->word, &p->flow, now);
		p->flow.dir = (p->egress && !p->guessed) || (!p->egress && answers_asked(sk, p, s)) ? OUT : IN;
		if (p->flow.proto == IPPROTO_UDP || p->flow.proto == IPPROTO_UDPLITE || p->flow.proto == IPPROTO_SCTP)
			p->flow.port = p->flow.dir == OUT ? p->flow.rport : p->flow.lport;
		if (denied_before(skb, sk, s, p, now))
			return false;
	}
	if (!judge_datagram(skb, sk, s, p, c)) {
		count(COUNT_DROPPED);
		return false;
	}
	c = bpf_map_lookup_elem(&connections, &p->key);
	return c ? pass(skb, c, &p->details, p->egress, now) : true;
}

/*
 * on_other_address judges a packet of a flow that came to another address of this host than the flow's first packet
 * did, where policy tells those addresses apart.
 */
static __noinline bool on_other_address(struct __sk_buff *skb, struct bpf_sock *sk, struct datagram *p,
					struct connection *c, __u64 now)
{
	__u32 subject = word_subject(READ_ONCE(c->word));
	struct decision d = {.rsubject = c->rsubject};

	p->flow.dir = IN;
	p->flow.port = c->port;
	d.unit = unit_of_socket(sk);
	judge(&p->flow, subject, &c->process, &d);
	if (d.verdict != DENY)
		return pass(skb, c, &p->details, false, now);
	deny_attempt(&p->flow, &d, &c->process, subject, 0);
	count(COUNT_DROPPED);
	return false;
}

/*
 * settled reports whether the verdict on the flow still holds. A socket at the other end that is on this host too may
 * have given way to somebody else's, which nobody tells: so that is looked up again each second.
 */
static __always_inline bool settled(const struct connection *c, __u64 word, __u64 state, __u64 now)
{
	return word_gen(word) && word_gen(word) == state_gen(state) && !exception(state) && (!(word & FLOW_LOOP) || now - c->judged < SECOND);
}

/* changes_hands reports, once, whether another process uses the socket now than the one that the flow was judged for. */
static __noinline bool changes_hands(struct bpf_sock *sk, struct connection *c)
{
	struct socket_state *s = bpf_sk_storage_get(&sockets, sk, 0, 0);

	if (!s || same_process(&s->process, &c->process))
		return false;
	c->process = s->process;
	return true;
}

/* on_denied_datagram drops a packet of a flow that is known to be denied. */
static __noinline bool on_denied_datagram(struct flow *f, struct connection *c)
{
	struct decision d = {.rule = c->rule, .peer = c->peer, .rsubject = c->rsubject};

	deny_attempt(f, &d, &c->process, word_subject(READ_ONCE(c->word)), 0);
	count(COUNT_DROPPED);
	return false;
}

/* on_datagram judges a packet of a socket that has no connection of its own. */
static __noinline bool on_datagram(struct __sk_buff *skb, struct bpf_sock *sk, bool egress)
{
	struct datagram p = {.egress = egress};
	struct settings *cfg = get_config();
	__u64 word, state, now;
	struct connection *c;
	bool known = false;

	if (!read_packet(skb, &p.flow, egress, &p.details)) {
		count(COUNT_ERRORS);
		p.flow.port = 0;
	}
	if ((p.flow.proto == IPPROTO_ICMP || p.flow.proto == IPPROTO_ICMPV6) &&
	    fixed_essential(p.flow.proto, p.flow.port))
		return true;
	if (egress && p.flow.lport && sk->protocol == IPPROTO_UDP && sk->type != SOCK_RAW)
		p.flow.lport = sk->src_port; /* the packet may have been given another already */
	p.key.cookie = bpf_get_socket_cookie(skb);
	copy_addr(p.key.raddr, p.flow.raddr);
	p.key.rport = p.flow.rport;
	p.key.lport = p.flow.lport;
	p.key.proto = p.flow.proto;
	c = bpf_map_lookup_elem(&connections, &p.key);
	now = bpf_ktime_get_coarse_ns();
	word = c ? READ_ONCE(c->word) : 0;
	if (!word) {
		c = NULL;
	} else if (cfg && expired(c, now, cfg)) {
		end_connection(&p.key, c);
		c = NULL;
	}
	if (c) {
		state = state_of(word_subject(word));
		known = settled(c, word, state, now) && !(egress && processes_matter() && changes_hands(sk, c));
		if (known && (word & FLOW_VERDICT) != DENY) {
			if (((__u32)state & SUBJECT_LOCAL_SETS) && !egress && !(word & FLOW_OUT) &&
			    !same_addr(c->laddr, p.flow.laddr))
				return on_other_address(skb, sk, &p, c, now);
			if (can_recall() && sk->protocol == IPPROTO_UDP && sk->type != SOCK_RAW)
				remember_flow(&p.key, c, state);
			return pass(skb, c, &p.details, egress, now);
		}
		p.flow.dir = word & FLOW_OUT ? OUT : IN;
		p.flow.port = c->port;
		copy_addr(p.flow.laddr, c->laddr);
	}
	if (!c || !known)
		return on_new_datagram(skb, sk, &p, c, now);
	return on_denied_datagram(&p.flow, c);
}

#endif
