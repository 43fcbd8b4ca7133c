/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers of resolvers (RFC 1035), read as they pass, before the program that asked can. Only those count that answer a
 * question which a socket of this host has sent to a resolver that policy names, and come from such a resolver: same
 * socket, same identifier, same name. The name is that of the question; what CNAMEs lead to has it too, and names on the
 * way have not: who asked knows one name, and only that can be meant by rules.
 *
 * These programs are in place only while rules name hosts. They are programs of their own, with a stack of their own, and need
 * bpf_loop.
 */
#ifndef BULKHEAD_NAMES_H
#define BULKHEAD_NAMES_H

#include "learnt.h"
#include "packet.h"
#include "process.h"

#define DNS_PORT 53
#define DNS_HEADER 12
#define MAX_WIRE_NAME 255 /* bytes, with lengths of labels and the final zero */
#define MAX_STEPS 384     /* of a walk: bytes of a name, and pointers in it */
#define MAX_RECORDS 128   /* of an answer, that are read */

#define TYPE_A 1
#define TYPE_CNAME 5
#define TYPE_AAAA 28
#define CLASS_IN 1

/* A walk along a name in a message, byte by byte. */
struct walk {
	struct __sk_buff *skb;
	struct spelling *spelling; /* NULL, or where the name is written down from its end; length must be known */
	struct sip sip;            /* of the name in lower case */
	__u64 word;                /* bytes that are not in it yet */
	__u32 message;             /* offset of the message in the packet, */
	__u32 limit;               /* and of its end */
	__u32 at;
	__u32 next;   /* offset of what follows the name, 0 before it is known */
	__u32 left;   /* bytes of the label */
	__u32 length; /* bytes of the name so far */
	__u32 whole;  /* bytes of the name in all, if it is written down */
	bool done;
};

static __always_inline void add_byte(struct walk *w, __u8 b)
{
	w->word |= (__u64)b << (8 * (w->length & 7));
	w->length++;
	if (!(w->length & 7)) {
		sip_word(&w->sip, w->word);
		w->word = 0;
	}
}

/* write_byte writes a byte of the name, of which so many are there already, at its place from the end. */
static __always_inline void write_byte(struct walk *w, __u8 b)
{
	__u32 place = w->whole - 2 - w->length;

	if (w->spelling && w->length && place < sizeof(w->spelling->key.text))
		w->spelling->key.text[place] = b;
}

static __always_inline bool is_host_byte(__u8 b)
{
	return (b >= 'a' && b <= 'z') || (b >= '0' && b <= '9') || b == '-' || b == '_';
}

static long walk_step(__u32 i, struct walk *w)
{
	__u8 b[2];

	if (w->at >= w->limit || w->length >= MAX_WIRE_NAME || bpf_skb_load_bytes(w->skb, w->at, b, 1) < 0)
		return 1;
	if (w->left) {
		if (b[0] >= 'A' && b[0] <= 'Z')
			b[0] |= 0x20;
		if (!is_host_byte(b[0])) /* not a host's: a dot, for one, would make it another name */
			return 1;
		write_byte(w, b[0]);
		add_byte(w, b[0]);
		w->left--;
		w->at++;
		return 0;
	}
	if ((b[0] & 0xc0) == 0xc0) {
		__u32 to;

		if (w->at + 2 > w->limit || bpf_skb_load_bytes(w->skb, w->at, b, 2) < 0)
			return 1;
		to = w->message + ((b[0] & 0x3f) << 8 | b[1]);
		if (to >= w->at) /* back only: so it ends */
			return 1;
		if (!w->next)
			w->next = w->at + 2;
		w->at = to;
		return 0;
	}
	if (b[0] & 0xc0)
		return 1;
	write_byte(w, b[0] ? '.' : 0);
	add_byte(w, b[0]);
	w->at++;
	if (b[0]) {
		w->left = b[0];
		return 0;
	}
	if (!w->next)
		w->next = w->at;
	w->done = true;
	return 1;
}

/* walk_name returns the hash of the name, or 0 if it is none; w->next is then the offset of what follows it. */
static __noinline __u64 walk_name(struct walk *w, __u32 at)
{
	struct settings *c = get_config();

	if (!c)
		return 0;
	w->sip.v0 = c->name_key[0] ^ 0x736f6d6570736575;
	w->sip.v1 = c->name_key[1] ^ 0x646f72616e646f6d;
	w->sip.v2 = c->name_key[0] ^ 0x6c7967656e657261;
	w->sip.v3 = c->name_key[1] ^ 0x7465646279746573;
	w->at = at;
	w->word = 0;
	w->next = 0;
	w->left = 0;
	w->length = 0;
	w->done = false;
	bpf_loop(MAX_STEPS, walk_step, w, 0);
	if (!w->done || w->length < 2)
		return 0;
	sip_word(&w->sip, w->word);
	sip_word(&w->sip, w->length);
	w->sip.v2 ^= 0xff;
	sip_round(&w->sip);
	sip_round(&w->sip);
	sip_round(&w->sip);
	sip_round(&w->sip);
	return w->sip.v0 ^ w->sip.v1 ^ w->sip.v2 ^ w->sip.v3;
}

/* with_resolver reports whether the message is one with a resolver whose answers count. */
static __always_inline bool with_resolver(struct flow *f)
{
	__u32 gen = generation();
	struct versioned *v;
	__u64 id;

	f->dir = OUT;
	f->port = DNS_PORT;
	id = identity_of(f, gen);
	v = id ? bpf_map_lookup_elem(&resolvers, &id) : NULL;
	return v && (value_at(v, gen) || v->cur);
}

/* Only tests set it: the kernel makes a new socket for each packet that they give to a program. */
volatile const bool one_socket = false;

/* read_exchange reports whether the packet is a message to or from a resolver. */
static __noinline bool read_exchange(struct __sk_buff *skb, struct exchange *x, bool egress)
{
	struct details d = {};
	__u8 h[DNS_HEADER];

	__builtin_memset(x, 0, sizeof(*x));
	if (!read_packet(skb, &x->flow, egress, &d) || x->flow.proto != IPPROTO_UDP || x->flow.rport != DNS_PORT ||
	    !with_resolver(&x->flow) || bpf_skb_load_bytes(skb, d.payload, h, sizeof(h)) < 0)
		return false;
	x->message = d.payload;
	x->key.cookie = one_socket ? 1 : bpf_get_socket_cookie(skb);
	x->key.lport = x->flow.lport;
	x->key.id = h[0] << 8 | h[1];
	x->flags[0] = h[2];
	x->flags[1] = h[3];
	x->questions = h[4] << 8 | h[5];
	x->answers = h[6] << 8 | h[7];
	return x->questions == 1;
}

/* is_datagram reports whether the packet may carry a message of DNS; most packets may not. */
static __always_inline bool is_datagram(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return false;
	sk = bpf_sk_fullsock(sk);
	return sk && sk->protocol != IPPROTO_TCP;
}

static __noinline int on_question(struct __sk_buff *skb)
{
	struct exchange x = {};
	struct walk w = {.skb = skb};
	struct question q = {};

	if (!read_exchange(skb, &x, true) || (x.flags[0] & 0xf8)) /* a query, and a plain one */
		return 0;
	w.message = x.message;
	w.limit = skb->len;
	q.name = walk_name(&w, w.message + DNS_HEADER);
	q.asked = now_seconds();
	if (q.name)
		bpf_map_update_elem(&questions, &x.key, &q, BPF_ANY);
	return 0;
}

SEC("cgroup_skb/egress")
int bulkhead_questions(struct __sk_buff *skb)
{
	if (is_datagram(skb))
		on_question(skb);
	return 1;
}

static const struct address_names nothing_learnt;

/* room makes an entry for an address; if there is no room for it, what is over goes, once a second at most. */
static __noinline int make_room(const struct learnt_key *key)
{
	struct name_totals *t;
	__u32 now = now_seconds(), zero = 0;
	__u64 last;

	t = bpf_map_lookup_elem(&named, &zero);
	if (bpf_map_update_elem(&learnt, key, &nothing_learnt, BPF_NOEXIST) != -E2BIG || !t)
		return 0;
	last = READ_ONCE(t->forgotten);
	if (last != now && __sync_val_compare_and_swap(&t->forgotten, last, now) == last)
		forget_names(0);
	return bpf_map_update_elem(&learnt, key, &nothing_learnt, BPF_NOEXIST);
}

#define REMEMBER_TRIES 4

struct remembering {
	struct learnt_key key;
	__u64 name;
	__u32 pattern;
	__u32 until;
	__u32 used;
};

/* remember_in writes a name into the entry of an address; it reports false if somebody was faster, or the entry goes. */
static __noinline bool remember_in(struct address_names *l, const struct remembering *r)
{
	__u64 word, new = (__u64)(r->pattern + 1) << 32 | r->until, old = 0;
	__u32 i, slot = NAMES, first = ~0u, now = now_seconds();

	for (i = 0; i < NAMES; i++) {
		word = READ_ONCE(l->slots[i]);
		if (word == LEARNT_GONE)
			return false;
		if ((__u32)(word >> 32) == r->pattern + 1) {
			slot = i;
			old = word;
			break;
		}
		if ((__u32)word < first) { /* a free one, or the one that is over first */
			first = word;
			slot = i;
			old = word;
		}
	}
	if (slot >= NAMES)
		return false;
	if ((__u32)(old >> 32) == r->pattern + 1 && (__u32)old > r->until)
		new = old;
	else if (old && (__u32)(old >> 32) != r->pattern + 1 && (__u32)old > now)
		count(COUNT_UNLEARNT);
	if (__sync_val_compare_and_swap(&l->slots[slot], old, new) != old)
		return false;
	WRITE_ONCE(l->names[slot], r->name);
	if (r->used)
		WRITE_ONCE(l->used, r->used);
	return READ_ONCE(l->slots[0]) != LEARNT_GONE;
}

static __noinline int remember(const struct remembering *r)
{
	struct address_names *l;
	int i;

	for (i = 0; i < REMEMBER_TRIES; i++) {
		l = bpf_map_lookup_elem(&learnt, &r->key);
		if (!l)
			make_room(&r->key);
		else if (remember_in(l, r))
			return 0;
	}
	count(COUNT_UNLEARNT);
	return 0;
}

/* pattern_of returns the number of the most specific pattern that covers the name, plus one; 0: none does. */
static __always_inline __u32 pattern_of(struct pattern_key *name, __u32 epoch)
{
	__u32 *number;

	name->bits = 8 * (sizeof(*name) - sizeof(name->bits));
	name->epoch = epoch;
	number = epoch ? bpf_map_lookup_elem(&patterns, name) : NULL;
	return number ? *number + 1 : 0;
}

/* The records of an answer, one after the other. */
struct records {
	struct walk walk;
	struct spelling *spelling;
};

/*
 * followed reports whether a name is to count at the address. Addresses that mean something else on each host, or nobody,
 * are never a name's: a name may be anybody's.
 */
static __always_inline bool followed(const __u32 *a)
{
	__u32 w;

	if (is_v4(a)) {
		w = bpf_ntohl(a[3]);
		return w >> 24 != 0 && w >> 24 != 127 && w >> 16 != 0xa9fe && w >> 28 < 0xe;
	}
	w = bpf_ntohl(a[0]);
	if (w >> 24 == 0xff || w >> 22 == 0x3fa)
		return false;
	return a[0] | a[1] | a[2] || bpf_ntohl(a[3]) > 1;
}

static __noinline int learn(struct spelling *s, __u32 ttl)
{
	struct remembering m = {.name = s->name};
	struct answer_key key = {.name = s->name};
	struct answer *known;
	__u32 i;

	if (!followed(s->addr))
		return 0;
	if (ttl > s->ttl)
		ttl = s->ttl;
	if (ttl < s->floor)
		ttl = s->floor;
	if (ttl > s->ceiling)
		ttl = s->ceiling;
	m.until = s->now + ttl;
	copy_addr(key.addr, s->addr);
	known = bpf_map_lookup_elem(&answers, &key);
	if (!known) {
		s->answer.until = m.until;
		s->answer.used = 0;
		bpf_map_update_elem(&answers, &key, &s->answer, BPF_ANY);
	} else if (known->until < m.until) {
		WRITE_ONCE(known->until, m.until);
	}
	copy_addr(m.key.addr, s->addr);
	for (i = 0; i < 2; i++) {
		if (!s->patterns[i])
			continue;
		m.pattern = s->patterns[i] - 1;
		m.key.epoch = s->epochs[i];
		remember(&m);
	}
	return 0;
}

static long read_record(__u32 i, struct records *r)
{
	struct spelling *s = r->spelling;
	struct walk *w = &r->walk;
	__u32 ttl, length, type;
	__u64 owner;
	__u8 b[10];

	owner = walk_name(w, s->at);
	if (!w->done)
		return 1;
	s->at = w->next;
	if (s->at + 10 > w->limit || bpf_skb_load_bytes(w->skb, s->at, b, 10) < 0)
		return 1;
	type = b[0] << 8 | b[1];
	ttl = (__u32)b[4] << 24 | b[5] << 16 | b[6] << 8 | b[7];
	length = b[8] << 8 | b[9];
	s->at += 10;
	if (s->at + length > w->limit)
		return 1;
	if (ttl >> 31) /* RFC 2181, 8 */
		ttl = 0;
	if (owner && owner == s->current && (b[2] << 8 | b[3]) == CLASS_IN) {
		if (type == TYPE_CNAME) {
			s->current = walk_name(w, s->at);
			if (!s->current || w->next != s->at + length)
				return 1;
			if (ttl < s->ttl)
				s->ttl = ttl;
		} else if (type == TYPE_A && length == 4 && bpf_skb_load_bytes(w->skb, s->at, &s->addr[3], 4) == 0) {
			map_v4(s->addr, s->addr[3]);
			learn(s, ttl);
		} else if (type == TYPE_AAAA && length == 16 && bpf_skb_load_bytes(w->skb, s->at, s->addr, 16) == 0) {
			learn(s, ttl);
		}
	}
	s->at += length;
	return 0;
}

static __noinline int on_answer(struct __sk_buff *skb)
{
	struct records r = {.walk = {.skb = skb}};
	struct settings *c = get_config();
	struct exchange *x;
	struct spelling *s;
	struct question *q;
	struct walk *w = &r.walk;
	__u32 zero = 0, first, i;
	__u64 next;

	s = bpf_map_lookup_elem(&spellings, &zero);
	if (!c || !s)
		return 0;
	x = &s->exchange;
	/* A reply to a query, without error. */
	if (!read_exchange(skb, x, false) || (x->flags[0] & 0xf8) != 0x80 || (x->flags[1] & 0x0f) || !x->answers)
		return 0;
	s->now = now_seconds();
	q = bpf_map_lookup_elem(&questions, &x->key);
	if (!q || s->now - q->asked > QUESTION_OPEN)
		return 0;
	w->message = x->message;
	w->limit = skb->len;
	s->name = walk_name(w, x->message + DNS_HEADER);
	/* The name of a question is written out, for there is nothing before it that it could point to. */
	if (!s->name || s->name != q->name || w->next - x->message - DNS_HEADER != w->length)
		return 0;
	bpf_map_delete_elem(&questions, &x->key);
	if (w->length - 1 > sizeof(s->key.text))
		return 0; /* too long for any pattern */
	__builtin_memset(&s->key, 0, sizeof(s->key));
	w->spelling = s;
	w->whole = w->length;
	walk_name(w, x->message + DNS_HEADER);
	w->spelling = NULL;
	__builtin_memcpy(s->answer.text, s->key.text, sizeof(s->key.text));
	r.spelling = s;
	s->current = s->name;
	s->at = w->next + 4;
	s->floor = c->ttl_floor;
	s->ceiling = c->ttl_ceiling;
	s->ttl = ~0u;
	first = s->at;
	for (i = 0; i < 2; i++) {
		next = READ_ONCE(c->next_epoch);
		s->epochs[0] = epoch_at(generation());
		s->epochs[1] = next != s->epochs[0] ? next : 0;
		s->patterns[0] = pattern_of(&s->key, s->epochs[0]);
		s->patterns[1] = pattern_of(&s->key, s->epochs[1]);
		bpf_loop(x->answers < MAX_RECORDS ? x->answers : MAX_RECORDS, read_record, &r, 0);
		/* An epoch that was prepared meanwhile may have been matched with what was told before this. */
		read_barrier();
		if (READ_ONCE(c->next_epoch) == next && epoch_at(generation()) == s->epochs[0])
			break;
		s->at = first;
		s->current = s->name;
	}
	return 0;
}

SEC("cgroup_skb/ingress")
int bulkhead_answers(struct __sk_buff *skb)
{
	if (is_datagram(skb))
		on_answer(skb);
	return 1;
}

/* rematch looks for the name of an answer among the patterns of the epoch that is being prepared. */
static long rematch(struct bpf_map *map, struct answer_key *key, struct answer *a, void *ctx)
{
	struct remembering m = {.name = key->name};
	struct settings *c = get_config();
	struct spelling *s;
	__u32 zero = 0, now = now_seconds();

	s = bpf_map_lookup_elem(&spellings, &zero);
	if (!c || !s || (a->until + NAME_KEPT <= now && (!a->used || a->used + NAME_KEPT <= now)))
		return 0;
	__builtin_memcpy(s->key.text, a->text, sizeof(s->key.text));
	m.key.epoch = READ_ONCE(c->next_epoch);
	m.pattern = pattern_of(&s->key, m.key.epoch);
	if (!m.pattern)
		return 0;
	m.pattern--;
	m.until = a->until;
	m.used = a->used;
	copy_addr(m.key.addr, key->addr);
	remember(&m);
	return 0;
}

/*
 * bulkhead_rematch looks for every name that was told lately among the patterns that are being prepared. It is attached to
 * nothing: the agent runs it, like a packet that comes in.
 */
SEC("cgroup_skb/ingress")
int bulkhead_rematch(struct __sk_buff *skb)
{
	bpf_for_each_map_elem(&answers, rematch, NULL, 0);
	return 0;
}

#endif
