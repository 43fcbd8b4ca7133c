/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the agent is told. A full ring buffer costs events, which are counted, and never delays a packet. */
#ifndef BULKHEAD_EVENTS_H
#define BULKHEAD_EVENTS_H

#include "judge.h"

#define SECOND 1000000000ull
#define WAKE_EVERY 5000000ull /* nanoseconds between wake-ups of the reader while events stream */

/* new_event reserves an event. The caller fills in what it knows, and must submit or discard it. */
static __always_inline struct event *new_event(__u8 kind, __u64 word)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count(COUNT_LOST);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_boot_ns();
	e->kind = kind;
	e->subject = word_subject(word);
	e->verdict = word & FLOW_VERDICT;
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

static const struct denial no_denial;

/* tell_denial emits n folded attempts; if the ring buffer is full they stay pending. */
static __noinline void tell_denial(const struct denial_key *key, struct denial *v, __u64 n)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		__sync_fetch_and_add(&v->pending, n);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_boot_ns();
	e->kind = EVENT_DENY;
	e->verdict = DENY;
	e->subject = key->subject;
	e->rule = key->rule;
	e->count = n;
	e->peer = v->peer;
	e->rsubject = v->rsubject;
	e->process = v->process;
	e->flow = v->flow;
	submit(e);
}

/*
 * deny_attempt records one denied attempt to begin a flow. The first of its kind is told at once, those that follow
 * within a second together. Every attempt is told exactly once: it is either pending or in an event.
 */
GLOBAL int deny_attempt(const struct flow *f, const struct decision *d, const struct process *p, __u32 subject)
{
	__u64 now = bpf_ktime_get_boot_ns(), last, n;
	struct denial_key key = {.subject = subject};
	struct denial *v;

	if (!f || !d)
		return 0;
	key.rule = d->rule;
	key.port = f->port;
	key.proto = f->proto;
	key.dir = f->dir;

	count(COUNT_DENIED);
	copy_addr(key.raddr, f->raddr);
	if (p)
		key.tgid = p->tgid;
	v = bpf_map_lookup_elem(&denials, &key);
	if (!v) {
		bpf_map_update_elem(&denials, &key, &no_denial, BPF_NOEXIST);
		v = bpf_map_lookup_elem(&denials, &key);
		if (!v) {
			count(COUNT_LOST);
			return 0;
		}
	}
	if (!v->filled) { /* two processors may both write the same here */
		v->peer = d->peer;
		v->rsubject = d->rsubject;
		v->flow = *f;
		if (p)
			v->process = *p;
		v->filled = 1;
	}
	last = READ_ONCE(v->last);
	if (now - last < SECOND || __sync_val_compare_and_swap(&v->last, last, now) != last) {
		__sync_fetch_and_add(&v->pending, 1);
		return 0;
	}
	n = __sync_lock_test_and_set(&v->pending, 0);
	tell_denial(&key, v, n + 1);
	return 0;
}

/* flush_denial tells what has been pending for a second. */
static long flush_denial(struct bpf_map *map, struct denial_key *key, struct denial *v, void *unused)
{
	__u64 now = bpf_ktime_get_boot_ns(), last = READ_ONCE(v->last), n;

	if (!READ_ONCE(v->pending) || now - last < SECOND ||
	    __sync_val_compare_and_swap(&v->last, last, now) != last)
		return 0;
	n = __sync_lock_test_and_set(&v->pending, 0);
	if (n)
		tell_denial(key, v, n);
	return 0;
}

#endif
