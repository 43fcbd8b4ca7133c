/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What answers of resolvers have taught: which addresses have names that rules know, and until when. Several processors
 * write one entry at once, and it may be deleted meanwhile: so a slot changes by compare-and-swap only, and before an entry
 * goes its first slot says so.
 */
#ifndef BULKHEAD_LEARNT_H
#define BULKHEAD_LEARNT_H

#include "judge.h"

/* touch_names notes that a live connection is judged by names of its address: they must not be forgotten. */
static __noinline int touch_names(const __u32 *addr)
{
	struct learnt_key key = {.epoch = epoch_at(generation())};
	struct answer_key name = {};
	struct address_names *l;
	struct answer *a;
	__u32 now = now_seconds();
	int i;

	copy_addr(key.addr, addr);
	l = key.epoch ? bpf_map_lookup_elem(&learnt, &key) : NULL;
	if (!l)
		return 0;
	WRITE_ONCE(l->used, now);
	copy_addr(name.addr, addr);
	for (i = 0; i < NAMES; i++) {
		name.name = READ_ONCE(l->names[i]);
		a = name.name ? bpf_map_lookup_elem(&answers, &name) : NULL;
		if (a)
			WRITE_ONCE(a->used, now);
	}
	return 0;
}

/* What a walk through everything learnt needs and finds. */
struct forgetting {
	__u64 epoch, next;
	__u32 now;
	__u32 kept; /* seconds that a slot stays after its time */
	__u32 addresses, names;
};

/* wanted reports whether something in the entry is not over yet, from the slot on. */
static __always_inline bool wanted(const struct address_names *l, __u32 from, const struct forgetting *f)
{
	__u64 word;
	__u32 i;

	for (i = from; i < NAMES; i++) {
		word = READ_ONCE(l->slots[i]);
		if (word && word != LEARNT_GONE && (__u32)word + f->kept > f->now)
			return true;
	}
	return READ_ONCE(l->used) && (__u32)READ_ONCE(l->used) + NAME_KEPT > f->now;
}

static long forget_address(struct bpf_map *map, struct learnt_key *key, struct address_names *l, struct forgetting *f)
{
	__u64 first;

	if (key->epoch != f->epoch && key->epoch != f->next) {
		bpf_map_delete_elem(&learnt, key);
		return 0;
	}
	first = READ_ONCE(l->slots[0]);
	if (wanted(l, 0, f)) {
		f->addresses += key->epoch == f->epoch;
		return 0;
	}
	if (first == LEARNT_GONE || __sync_val_compare_and_swap(&l->slots[0], first, LEARNT_GONE) != first)
		return 0;
	/* Who writes another slot looks at the first one afterwards: one of the two sees the other. */
	if (wanted(l, 1, f))
		__sync_val_compare_and_swap(&l->slots[0], LEARNT_GONE, 0);
	else
		bpf_map_delete_elem(&learnt, key);
	return 0;
}

static long count_name(struct bpf_map *map, struct answer_key *key, struct answer *a, struct forgetting *f)
{
	f->names += a->until > f->now;
	return 0;
}

/* forget_names removes what has been over for so many seconds and is not in use, and counts the rest. */
static __noinline int forget_names(__u32 kept)
{
	struct settings *c = get_config();
	struct forgetting f = {.now = now_seconds(), .kept = kept};
	struct name_totals *t;
	__u32 zero = 0;

	t = bpf_map_lookup_elem(&named, &zero);
	if (!c || !t)
		return 0;
	f.epoch = epoch_at(generation());
	f.next = READ_ONCE(c->next_epoch);
	bpf_for_each_map_elem(&learnt, forget_address, &f, 0);
	bpf_for_each_map_elem(&answers, count_name, &f, 0);
	t->addresses = f.addresses;
	t->names = f.names;
	return 0;
}

#endif
