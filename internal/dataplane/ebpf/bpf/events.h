/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the agent is told. A full ring buffer costs events, which are counted, and never delays a packet. */
#ifndef BULKHEAD_EVENTS_H
#define BULKHEAD_EVENTS_H

#include "judge.h"

#define SECOND 1000000000ull
#define WAKE_EVERY 5000000ull /* nanoseconds between wake-ups of the reader while events stream */

static __always_inline void begin_event(struct event *e, __u8 kind, __u64 word)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_boot_ns();
	e->kind = kind;
	e->subject = word_subject(word);
	e->verdict = word & FLOW_VERDICT;
}

/* new_event reserves an event. The caller fills in what it knows, and must submit or discard it. */
static __always_inline struct event *new_event(__u8 kind, __u64 word)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count(COUNT_LOST);
		return NULL;
	}
	begin_event(e, kind, word);
	return e;
}

/* has_room reports whether half of the buffer is free: the other half is for what cannot be told later. */
static __always_inline bool has_room(void)
{
	return bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / 2;
}

/* new_update reserves an event about what a flow has carried so far. Where there is no room the next one says it. */
static __always_inline struct event *new_update(__u64 word)
{
	struct event *e = has_room() ? bpf_ringbuf_reserve(&events, sizeof(*e), 0) : NULL;

	if (e)
		begin_event(e, EVENT_UPDATE, word);
	return e;
}

/*
 * submit hands the event over. Waking the reader for each one would cost more than the event: a single event wakes
 * it at once, a stream of them every few milliseconds, and the reader looks by itself from time to time.
 */
static __always_inline void submit(struct event *e)
{
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&wakeups, &zero), now = e->time;
	__u64 flags = BPF_RB_NO_WAKEUP;

	if (!last || now - *last > WAKE_EVERY) {
		flags = BPF_RB_FORCE_WAKEUP;
		if (last)
			*last = now;
	}
	bpf_ringbuf_submit(e, flags);
}

/* tell_verdict reports that a flow was opened, or judged anew, or that a live one is denied from now on. */
GLOBAL int tell_verdict(const struct flow *f, const struct decision *d, const struct process *p, __u64 word, __u32 flags)
{
	struct event *e;

	if (!f || !d)
		return 0;
	if (!(flags & EVENT_REJUDGED))
		count(d->verdict == ALLOW ? COUNT_ALLOWED : d->verdict == DENY ? COUNT_DENIED : COUNT_WOULD_DENIED);
	e = new_event(d->verdict == DENY ? EVENT_DENY : EVENT_OPEN, word);
	if (!e)
		return 0;
	e->rule = d->rule;
	e->peer = d->peer;
	e->rsubject = d->rsubject;
	e->verdict = d->verdict;
	e->flags = flags;
	e->count = d->verdict == DENY;
	e->flow = *f;
	if (p)
		e->process = *p;
	submit(e);
	return 0;
}

/* tell_denial reports n denied attempts to begin a flow; it reports whether there was room. */
static __noinline bool tell_denial(const struct flow *f, const struct decision *d, const struct process *p, __u32 subject,
				   __u64 n)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e)
		return false;
	begin_event(e, EVENT_DENY, make_word(0, subject, DENY));
	e->rule = d->rule;
	e->count = n;
	e->peer = d->peer;
	e->rsubject = d->rsubject;
	if (p)
		e->process = *p;
	e->flow = *f;
	submit(e);
	return true;
}

static const struct denial no_denial;

static __always_inline __u64 denial_state(__u64 now, __u64 pending)
{
	return now >> DENIAL_TICK << DENIAL_PENDING | pending;
}

/* denial_due reports whether it is time for an event. Another processor's last event may be later than our now. */
static __always_inline bool denial_due(__u64 state, __u64 now)
{
	return (__s64)((now >> DENIAL_TICK) - (state >> DENIAL_PENDING)) >= DENIAL_EVERY;
}

/* add_pending has n attempts told later; it reports whether that is possible. */
static __always_inline bool add_pending(struct denial *v, __u64 n)
{
	for (int i = 0; i < DENIAL_TRIES; i++) {
		__u64 state = READ_ONCE(v->state);

		if (state == DENIAL_GONE || (state & DENIAL_MAX) + n > DENIAL_MAX)
			return false;
		if (__sync_val_compare_and_swap(&v->state, state, state + n) == state)
			return true;
	}
	return false;
}

/* take_pending begins a new second and takes the attempts of the last one, or reports that it is not time. */
static __always_inline bool take_pending(struct denial *v, __u64 now, __u64 *n)
{
	__u64 state = READ_ONCE(v->state);

	if (state == DENIAL_GONE || !denial_due(state, now) ||
	    __sync_val_compare_and_swap(&v->state, state, denial_state(now, 0)) != state)
		return false;
	*n = state & DENIAL_MAX;
	return true;
}

/* fold has one more denied attempt of a kind told: now, or with those of the last second. v is NULL if kinds are too many. */
static __noinline int fold(struct denial *v, const struct flow *f, const struct decision *d, const struct process *p,
			   __u32 subject)
{
	__u64 n = 0;

	count(COUNT_DENIED);
	if (v && !take_pending(v, bpf_ktime_get_ns(), &n) && add_pending(v, 1))
		return 0;
	if (!tell_denial(f, d, p, subject, n + 1) && !(v && add_pending(v, n + 1)))
		count(COUNT_LOST);
	return 0;
}

static __always_inline void denial_kind(struct denial_key *key, const struct flow *f, const struct process *p, __u32 subject)
{
	copy_addr(key->raddr, f->raddr);
	key->port = f->port;
	key->proto = f->proto;
	key->dir = f->dir;
	key->subject = subject;
	if (p)
		key->tgid = p->tgid;
}

/*
 * deny_attempt records one denied attempt to begin a flow. The first of its kind is told at once, those that follow
 * within a second together. Every attempt is told exactly once, or counted as lost: when and how many are one word, so
 * that an attempt is either added before that word says that the kind is gone, or told alone. gen is the subject's
 * generation if in it all packets of the kind are denied by this rule, else 0.
 */
GLOBAL int deny_attempt(const struct flow *f, const struct decision *d, const struct process *p, __u32 subject, __u32 gen)
{
	struct denial_key key = {.gen = gen};
	struct denial *v;

	if (!f || !d)
		return 0;
	if (!gen)
		key.rule = d->rule;
	denial_kind(&key, f, p, subject);
	v = bpf_map_lookup_elem(&denials, &key);
	if (!v) {
		bpf_map_update_elem(&denials, &key, &no_denial, BPF_NOEXIST);
		v = bpf_map_lookup_elem(&denials, &key);
	}
	if (v && !READ_ONCE(v->filled)) { /* two processors may both write the same here */
		v->flow = *f;
		v->decision = *d;
		if (p)
			v->process = *p;
		read_barrier();
		WRITE_ONCE(v->filled, 1);
	}
	return fold(v, f, d, p, subject);
}

/* flush_denial tells what has been pending for a second, and forgets what has not happened for one. */
static long flush_denial(struct bpf_map *map, struct denial_key *key, struct denial *v, void *unused)
{
	__u64 now = bpf_ktime_get_ns(), state = READ_ONCE(v->state), n;

	if (state == DENIAL_GONE || !denial_due(state, now))
		return 0;
	if (!(state & DENIAL_MAX)) {
		if (__sync_val_compare_and_swap(&v->state, state, DENIAL_GONE) == state)
			bpf_map_delete_elem(&denials, key);
	} else if (take_pending(v, now, &n) && !tell_denial(&v->flow, &v->decision, &v->process, key->subject, n) &&
		   !add_pending(v, n)) {
		count(COUNT_LOST);
	}
	return 0;
}

#endif
