/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that are judged at an interface, because no inet socket of this host is at their end. Who sent the first packet opened
 * the flow, what comes back belongs to it, and a change of policy judges it anew with its next packet. Denied flows are not
 * kept, unless they were allowed before.
 */
#ifndef BULKHEAD_PASSAGES_H
#define BULKHEAD_PASSAGES_H

#include "connections.h"
#include "frames.h"

#define TCP_SILENCE (24 * 3600 * SECOND) /* a connection may be silent for so long */
#define TCP_CLOSED (10 * SECOND)	  /* and has ended so long after its last packet */

static const struct passage no_passage;

/* A packet on its way through an interface. */
struct passing {
	struct frame frame;
	struct passage_key key;
	__u32 subject;
	__u16 rsubject;
	__u8 sender; /* the subject is that of the socket that sends, not of all that is behind the port */
	__u8 quiet;
	__u64 unit;
};

static __always_inline bool passage_over(const struct passage *c, __u8 proto, __u64 now, const struct settings *cfg)
{
	__u64 last = READ_ONCE(c->last), silence = c->replied ? cfg->replied : cfg->unreplied;

	if (proto == IPPROTO_TCP && c->closing == CLOSED)
		silence = cfg->unreplied < TCP_CLOSED ? cfg->unreplied : TCP_CLOSED;
	else if (proto == IPPROTO_TCP && (READ_ONCE(c->word) & FLOW_VERDICT) != DENY)
		silence = c->replied ? TCP_SILENCE : cfg->replied;
	return now > last && now - last > silence;
}

static __noinline void describe_passage(struct event *e, const struct passage_key *k, struct passage *c)
{
	e->rule = c->rule;
	e->peer = c->peer;
	e->rsubject = c->rsubject;
	copy_addr(e->flow.laddr, k->laddr);
	copy_addr(e->flow.raddr, k->raddr);
	e->flow.proto = k->proto;
	e->flow.lport = k->lport;
	e->flow.rport = k->rport;
	e->flow.port = c->port;
	e->flow.dir = READ_ONCE(c->word) & FLOW_OUT ? OUT : IN;
	e->sent = take(&c->told_sent, READ_ONCE(c->sent));
	e->received = take(&c->told_received, READ_ONCE(c->received));
	e->packets_sent = take(&c->told_packets_sent, READ_ONCE(c->packets_sent));
	e->packets_received = take(&c->told_packets_received, READ_ONCE(c->packets_received));
}

/* end_passage forgets a flow and tells that it ended, once. */
static __noinline int end_passage(const struct passage_key *key, struct passage *c)
{
	__u64 word = READ_ONCE(c->word);
	struct event *e = (word & FLOW_OPENED) && !c->quiet ? new_event(EVENT_CLOSE, word) : NULL;

	if (e)
		describe_passage(e, key, c);
	if (bpf_map_delete_elem(&passages, key) != 0) {
		if (e)
			bpf_ringbuf_discard(e, 0);
		return 0;
	}
	if (e)
		submit(e);
	return 1;
}

/* visit_passage ends a flow that is over, or tells what has passed in it. */
static long visit_passage(struct bpf_map *map, struct passage_key *key, struct passage *c, struct visit *v)
{
	__u64 word = READ_ONCE(c->word);
	struct event *e;

	if (!word)
		return 0;
	if (passage_over(c, key->proto, v->now, v->settings)) {
		if (has_room())
			end_passage(key, c);
		return 0;
	}
	if (v->updates && (word & FLOW_NAMED))
		touch_names(key->raddr);
	if (!v->updates || c->quiet || !(word & FLOW_OPENED) ||
	    (READ_ONCE(c->packets_sent) == READ_ONCE(c->told_packets_sent) &&
	     READ_ONCE(c->packets_received) == READ_ONCE(c->told_packets_received)))
		return 0;
	e = new_update(word);
	if (!e)
		return 0;
	describe_passage(e, key, c);
	submit(e);
	return 0;
}

/* count_passage counts a packet of a flow that may go on. */
static __noinline int count_passage(struct __sk_buff *skb, struct passage *c, const struct frame *f)
{
	__u32 size = skb->len > f->offset ? skb->len - f->offset : 0;
	__u64 now = bpf_ktime_get_coarse_ns();

	if (now - c->last > SECOND / 8)
		WRITE_ONCE(c->last, now);
	if (f->leaving) {
		__sync_fetch_and_add(&c->sent, size);
		__sync_fetch_and_add(&c->packets_sent, 1);
	} else {
		__sync_fetch_and_add(&c->received, size);
		__sync_fetch_and_add(&c->packets_received, 1);
	}
	if (!c->replied && f->leaving != !!(READ_ONCE(c->word) & FLOW_OUT))
		c->replied = 1;
	if (f->flow.proto == IPPROTO_TCP) {
		if (f->tcp_flags & TCP_RST)
			c->closing = CLOSED;
		else if (f->tcp_flags & TCP_FIN)
			c->closing |= f->leaving ? CLOSED_HERE : CLOSED_THERE;
	}
	return 1;
}

static __always_inline bool is_opening(const struct frame *f)
{
	return f->flow.proto == IPPROTO_TCP && (f->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

/*
 * begin_direction says who opens the flow of which this is the first packet that was seen. A connection that is older than
 * its guard was opened by the end whose port is one that clients are given.
 */
static __always_inline void begin_direction(struct frame *f, bool guess)
{
	struct flow *w = &f->flow;
	bool out = f->leaving;

	if (guess && w->proto == IPPROTO_TCP && !is_opening(f) && (w->lport < 32768) != (w->rport < 32768))
		out = w->rport < 32768;
	w->dir = out ? OUT : IN;
	if (w->proto == IPPROTO_TCP || w->proto == IPPROTO_UDP || w->proto == IPPROTO_UDPLITE || w->proto == IPPROTO_SCTP)
		w->port = out ? w->rport : w->lport;
}

/* settle_passage records a decision for an entry whose word was old and tells about it once; see settle_connection. */
static __noinline int settle_passage(struct passage *c, __u64 state, struct passing *p, const struct decision *d)
{
	__u64 old = READ_ONCE(c->word), new;
	bool changed = !(old & FLOW_SEEN) || (old & FLOW_VERDICT) != d->verdict || c->rule != d->rule ||
		       word_subject(old) != (p->subject & 0xffff);
	__u32 flags = 0;

	new = make_word(state_gen(state), p->subject, (old & (FLOW_OPENED | FLOW_SEEN | FLOW_EXISTING)) | d->verdict |
			FLOW_JUDGED | FLOW_DIR | (p->frame.flow.dir == OUT ? FLOW_OUT : 0) | (d->named ? FLOW_NAMED : 0));
	if (before_policy(d))
		new |= FLOW_EXISTING;
	else
		new |= d->verdict != DENY ? FLOW_SEEN | FLOW_OPENED : FLOW_SEEN;
	if (__sync_val_compare_and_swap(&c->word, old, new) != old)
		return 0; /* another packet of the flow has just been judged */
	c->rule = d->rule;
	c->peer = d->peer;
	c->rsubject = d->rsubject;
	if (!changed || c->quiet || before_policy(d))
		return 0;
	if (old & FLOW_OPENED)
		flags |= EVENT_REJUDGED;
	if (new & FLOW_EXISTING)
		flags |= EVENT_EXISTING;
	tell_verdict(&p->frame.flow, d, NULL, new, flags);
	return 0;
}

/* new_passage makes an entry for a flow that may go on. */
static __noinline struct passage *new_passage(struct passing *p)
{
	struct passage *c;

	bpf_map_update_elem(&passages, &p->key, &no_passage, BPF_NOEXIST);
	c = bpf_map_lookup_elem(&passages, &p->key);
	if (!c || READ_ONCE(c->word))
		return c;
	c->port = p->frame.flow.port;
	c->quiet = p->quiet;
	c->last = bpf_ktime_get_coarse_ns();
	return c;
}

/* deny_passage tells that a packet is denied, if it was meant to begin something, or somebody may wait for it. */
static __noinline int deny_passage(const struct passing *p, const struct decision *d)
{
	count(COUNT_DROPPED);
	if (!p->quiet)
		deny_attempt(&p->frame.flow, d, NULL, p->subject, 0);
	return false;
}

/* judge_passage is the slow path: the flow is new (c is NULL), or its verdict is of another generation. */
static __noinline int judge_passage(struct __sk_buff *skb, struct passing *p, struct passage *c)
{
	struct decision d = {.rsubject = p->rsubject, .unit = p->unit};
	__u32 gen = generation();
	__u64 state;

	if (c)
		d.was_named = !!(READ_ONCE(c->word) & FLOW_NAMED);
	state = as_of(judge(&p->frame.flow, p->subject, NULL, &d), gen);
	if (!c) {
		if (d.verdict == DENY)
			return deny_passage(p, &d);
		c = new_passage(p);
		if (!c) {
			count(COUNT_ERRORS);
			return true;
		}
	}
	settle_passage(c, state, p, &d);
	if (d.verdict == DENY) {
		count(COUNT_DROPPED);
		return false;
	}
	return count_passage(skb, c, &p->frame);
}

/* on_denied_passage drops a packet of a flow that is known to be denied. */
static __noinline int on_denied_passage(struct passing *p, struct passage *c)
{
	struct decision d = {.rule = c->rule, .peer = c->peer, .rsubject = c->rsubject};

	return deny_passage(p, &d);
}

/* on_passage judges a packet, and returns whether it may pass. Its frame is read, and its subject known. */
static __noinline int on_passage(struct __sk_buff *skb, struct passing *p, bool guess)
{
	struct settings *cfg = get_config();
	struct flow *f = &p->frame.flow;
	struct passage *c;
	__u64 word, state;

	copy_addr(p->key.laddr, f->laddr);
	copy_addr(p->key.raddr, f->raddr);
	p->key.lport = f->lport;
	p->key.rport = f->rport;
	p->key.proto = f->proto;
	c = bpf_map_lookup_elem(&passages, &p->key);
	word = c ? READ_ONCE(c->word) : 0;
	if (!word) {
		c = NULL;
	} else if ((c->closing == CLOSED && is_opening(&p->frame)) ||
		   (cfg && passage_over(c, f->proto, bpf_ktime_get_coarse_ns(), cfg))) {
		end_passage(&p->key, c);
		c = NULL;
	}
	if (!c) {
		begin_direction(&p->frame, guess);
		return judge_passage(skb, p, NULL);
	}
	f->dir = word & FLOW_OUT ? OUT : IN;
	f->port = c->port;
	state = state_of(word_subject(word));
	if (!p->sender && state)
		p->subject = word_subject(word); /* a unit within the port's may have opened it */
	if (word_subject(word) == p->subject && word_gen(word) && word_gen(word) == state_gen(state) && !exception(state)) {
		if ((word & FLOW_VERDICT) != DENY)
			return count_passage(skb, c, &p->frame);
		return on_denied_passage(p, c);
	}
	return judge_passage(skb, p, c);
}

#endif
