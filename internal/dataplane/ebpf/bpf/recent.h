/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What has been allowed or denied lately, by processor. After a system call each page of memory that a packet needs costs more than
 * all the instructions of these programs, so of most packets it is said here, in one place, what becomes of them: of a connection by
 * its socket's cookie, of a datagram by its flow, in which it is counted too. What is said holds in one generation of policy, and of
 * datagrams for half a second. Whatever is not said here is judged as if there were no such place.
 */
#ifndef BULKHEAD_RECENT_H
#define BULKHEAD_RECENT_H

#include "socket.h"

#define CONNECTIONS_EACH 1024 /* places of one processor; powers of two */
#define PROCESSORS 1024	      /* that have places for connections */
#define FLOWS_EACH 128
#define USERS 4096 /* of all processors */
#define OPENINGS 1024
#define FLOW_ROWS 64	      /* of places for flows; processors with the same number modulo this share one */
#define FLOW_HOLDS (SECOND / 2)
#define FLOW_PACKETS 8 /* that a flow has had before it is worth a place */

/* Whether the kernel shows what a socket is without a call; tests say no. */
volatile const bool recalls = true;

extern void *bpf_rdonly_cast(const void *obj, __u32 type) __ksym __weak;

/* What a flow has carried. */
struct traffic {
	__u64 sent, received, packets_sent, packets_received;
};

/*
 * A flow's place. Its turn is odd while the place is being given to another flow, and higher by two afterwards, so that whoever
 * reads the place knows whether all of it was of one flow. What it has seen is never taken back, also not for another flow.
 */
struct recent_flow {
	__u64 turn; /* generation << 32 | turn */
	__u64 until;
	struct connection_key key;
	struct traffic seen;
	struct traffic told; /* to the flow's entry in connections */
	__u8 out, in;	     /* what becomes of packets that leave, and that come: enum lately */
	__u16 subject;	     /* of a kind of datagrams that is denied, like these: */
	__u32 gen;	     /* of the subject; 0: this is a flow */
	__u32 tgid;
	__u32 openings; /* of the socket when the place was given */
};

/* What has become of packets like this one lately. */
enum lately {
	UNHEARD,
	MAY_PASS,
	MAY_NOT,
};

/* Connections: tags. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CONNECTIONS_EACH);
	__type(key, __u32);
	__type(value, __u64);
	PINNED;
} recent_connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS_EACH);
	__type(key, __u32);
	__type(value, struct recent_flow);
	PINNED;
} recent_flows SEC(".maps");

/* Sockets of datagrams: process that used it last << 32 | what of the cookie is not the number of the place. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, USERS);
	__type(key, __u32);
	__type(value, __u64);
	PINNED;
} recent_users SEC(".maps");

/*
 * Sockets of datagrams, by cookie -> how many flows they have begun. What was denied may be an answer to what the socket has sent
 * meanwhile.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, OPENINGS);
	__type(key, __u32);
	__type(value, __u32);
	PINNED;
} recent_openings SEC(".maps");

/* can_recall reports whether known_socket may be called. */
static __always_inline bool can_recall(void)
{
	return recalls && bpf_ksym_exists(bpf_rdonly_cast);
}

/* known_socket is the socket as the kernel has it. */
static __always_inline struct sock *known_socket(struct bpf_sock *sk)
{
	return bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct sock));
}

/* tag_of names a connection in a generation of policy. What of the cookie is the number of its place it need not have. */
static __always_inline __u64 tag_of(__u64 cookie, __u32 gen)
{
	return (__u64)gen << 32 | 0x80000000 | (cookie / CONNECTIONS_EACH & 0x7fffffff);
}

static __always_inline __u64 *place_of_connection(__u64 cookie)
{
	__u32 at = bpf_get_smp_processor_id() * CONNECTIONS_EACH + (cookie & (CONNECTIONS_EACH - 1));

	return bpf_map_lookup_elem(&recent_connections, &at);
}

static __always_inline bool is_recent_connection(__u64 cookie)
{
	__u64 *place = place_of_connection(cookie);

	return place && READ_ONCE(*place) == tag_of(cookie, generation());
}

/*
 * remember_connection says that the connection has been allowed in a generation that was in force before that was looked up:
 * if another one is now, what is said here is void.
 */
static __noinline int remember_connection(struct __sk_buff *skb, __u32 gen)
{
	__u64 cookie = bpf_get_socket_cookie(skb), *place = cookie ? place_of_connection(cookie) : NULL;

	if (place)
		WRITE_ONCE(*place, tag_of(cookie, gen));
	return 0;
}

/* forget_connection has nothing said of what the socket was connected to before: it is about to be somebody else. */
static __noinline int forget_connection(struct bpf_sock *sk)
{
	__u32 at = known_socket(sk)->__sk_common.skc_cookie.counter & (CONNECTIONS_EACH - 1), i;
	__u64 *place;

	for (i = 0; i < PROCESSORS; i++, at += CONNECTIONS_EACH) {
		place = bpf_map_lookup_elem(&recent_connections, &at);
		if (!place)
			break;
		WRITE_ONCE(*place, 0);
	}
	return 0;
}

/*
 * uses_still reports whether the running process was the last to use the socket of datagrams, and says that it is now. As long
 * as no rule names processes, nothing else about it counts.
 */
static __always_inline bool uses_still(struct bpf_sock *sk)
{
	__u64 cookie = known_socket(sk)->__sk_common.skc_cookie.counter, *place, who;
	__u32 at = cookie & (USERS - 1);

	place = bpf_map_lookup_elem(&recent_users, &at);
	if (!place || !cookie)
		return false;
	who = (bpf_get_current_pid_tgid() >> 32) << 32 | (__u32)(cookie / USERS);
	if (READ_ONCE(*place) == who)
		return !processes_matter();
	WRITE_ONCE(*place, who);
	return false;
}

static __always_inline struct recent_flow *flow_in_row(__u32 row, __u64 cookie, __u32 raddr, __u16 rport)
{
	__u32 mixed = (cookie ^ raddr ^ rport) * 0x9e3779b1u;
	__u32 at = row * FLOWS_EACH + mixed / (1u << 25);

	return bpf_map_lookup_elem(&recent_flows, &at);
}

static __always_inline __u32 flow_row(void)
{
	return bpf_get_smp_processor_id() & (FLOW_ROWS - 1);
}

static __always_inline __u32 *place_of_openings(__u64 cookie)
{
	__u32 at = cookie & (OPENINGS - 1);

	return bpf_map_lookup_elem(&recent_openings, &at);
}

static __always_inline __u32 openings_of(__u64 cookie)
{
	__u32 *n = place_of_openings(cookie);

	return n ? READ_ONCE(*n) : 0;
}

/* count_opening must be called when a flow has got its entry. */
static __always_inline void count_opening(__u64 cookie)
{
	__u32 *n = place_of_openings(cookie);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* read_turn reads the place's turn before anything else of the place: an atomic operation with a result is ordered. */
static __always_inline __u64 read_turn(struct recent_flow *r)
{
	return __sync_fetch_and_add(&r->turn, 0);
}

static __always_inline bool holds(__u64 turn, __u32 gen)
{
	return turn >> 32 == gen && !(turn & 1);
}

/*
 * on_recent_flow counts a datagram of a flow that has a place, and says what becomes of it. Only headers that are all in one
 * piece, and of the plain kind, are read.
 */
static __noinline int on_recent_flow(struct __sk_buff *skb, __u64 cookie, bool egress)
{
	const __u8 *h = (const __u8 *)(long)skb->data, *end = (const __u8 *)(long)skb->data_end;
	struct bpf_sock *sk = skb->sk;
	const __u32 *raddr;
	struct recent_flow *r;
	const __u16 *ports;
	__u16 lport, rport;
	__u32 head, size;
	enum lately becomes;
	bool v4;

	if (!sk || h + 28 > end)
		return UNHEARD;
	v4 = skb->protocol == bpf_htons(ETH_P_IP);
	if (v4) {
		if (h[0] != 0x45 || h[9] != IPPROTO_UDP || ((h[6] & 0x3f) | h[7]))
			return UNHEARD;
		raddr = (const __u32 *)(h + (egress ? 16 : 12));
		ports = (const __u16 *)(h + 20);
		head = 28;
	} else {
		if (h + 48 > end || h[0] >> 4 != 6 || h[6] != IPPROTO_UDP)
			return UNHEARD;
		raddr = (const __u32 *)(h + (egress ? 24 : 8));
		ports = (const __u16 *)(h + 40);
		head = 48;
	}
	rport = bpf_ntohs(ports[egress]);
	lport = egress ? sk->src_port : bpf_ntohs(ports[1]); /* what leaves may have been given another already */
	r = flow_in_row(flow_row(), cookie, raddr[v4 ? 0 : 3], rport);
	if (!r || !holds(read_turn(r), generation()) || r->key.cookie != cookie || r->key.rport != rport || r->key.lport != lport ||
	    bpf_ktime_get_coarse_ns() > r->until)
		return UNHEARD;
	becomes = egress ? r->out : r->in;
	if (becomes == UNHEARD || (becomes == MAY_NOT && openings_of(cookie) != r->openings))
		return UNHEARD;
	if (v4) {
		if (r->key.raddr[3] != raddr[0] || !is_v4(r->key.raddr))
			return UNHEARD;
	} else if (!same_addr(r->key.raddr, raddr)) {
		return UNHEARD;
	}
	size = skb->len - head;
	if (egress) {
		__sync_fetch_and_add(&r->seen.sent, size);
		__sync_fetch_and_add(&r->seen.packets_sent, 1);
	} else {
		__sync_fetch_and_add(&r->seen.received, size);
		__sync_fetch_and_add(&r->seen.packets_received, 1);
	}
	return becomes;
}

/*
 * take_of returns what a place has seen since it told of it last, if it still has this turn: then all of that was of one flow.
 * Only one caller gets each byte: what is told is raised by compare-and-swap.
 */
static __always_inline __u64 take_of(struct recent_flow *r, __u64 turn, __u64 *told, __u64 *seen)
{
	__u64 old = READ_ONCE(*told), total = READ_ONCE(*seen);

	if (total == old || read_turn(r) != turn || __sync_val_compare_and_swap(told, old, total) != old)
		return 0;
	return total - old;
}

/* gather adds what a place, in this turn, has seen of a flow to the flow's entry. */
GLOBAL int gather(struct recent_flow *r, __u64 turn, struct connection *c, __u64 now)
{
	__u64 last, sent, received;

	if (!r || !c)
		return 0;
	last = r->until < now ? r->until : now; /* or earlier */
	sent = take_of(r, turn, &r->told.packets_sent, &r->seen.packets_sent);
	received = take_of(r, turn, &r->told.packets_received, &r->seen.packets_received);
	__sync_fetch_and_add(&c->sent, take_of(r, turn, &r->told.sent, &r->seen.sent));
	__sync_fetch_and_add(&c->received, take_of(r, turn, &r->told.received, &r->seen.received));
	__sync_fetch_and_add(&c->packets_sent, sent);
	__sync_fetch_and_add(&c->packets_received, received);
	if (sent + received && last > c->last)
		WRITE_ONCE(c->last, last);
	return 0;
}

static __always_inline bool same_key(const struct connection_key *a, const struct connection_key *b)
{
	return a->cookie == b->cookie && a->rport == b->rport && a->lport == b->lport && a->proto == b->proto &&
	       same_addr(a->raddr, b->raddr);
}

/* gather_denied has the denials that a place has seen told. */
GLOBAL int gather_denied(struct recent_flow *r, __u64 turn)
{
	struct denial_key key = {};
	struct denial *v;
	__u64 n;

	if (!r)
		return 0;
	key.gen = r->gen;
	key.subject = r->subject;
	key.tgid = r->tgid;
	copy_addr(key.raddr, r->key.raddr);
	key.proto = r->key.proto;
	key.dir = r->out == MAY_NOT ? OUT : IN;
	key.port = r->out == MAY_NOT ? r->key.rport : r->key.lport;
	n = take_of(r, turn, &r->told.packets_sent, &r->seen.packets_sent) +
	    take_of(r, turn, &r->told.packets_received, &r->seen.packets_received);
	if (!n)
		return 0;
	add_count(COUNT_DENIED, n);
	add_count(COUNT_DROPPED, n);
	v = bpf_map_lookup_elem(&denials, &key);
	if (!v || !add_pending(v, n))
		add_count(COUNT_LOST, n);
	return 0;
}

/* gather_all gathers what all places have seen of a flow. */
GLOBAL int gather_all(const struct connection_key *key, struct connection *c)
{
	__u64 rows, now = bpf_ktime_get_ns(), turn;
	struct recent_flow *r;
	__u32 i;

	if (!key || !c)
		return 0;
	rows = READ_ONCE(c->rows);
	for (i = 0; i < FLOW_ROWS && rows; i++, rows >>= 1) {
		r = rows & 1 ? flow_in_row(i, key->cookie, key->raddr[3], key->rport) : NULL;
		if (!r)
			continue;
		turn = read_turn(r);
		if (!(turn & 1) && !r->gen && same_key(&r->key, key))
			gather(r, turn, c, now);
	}
	return 0;
}

/* gather_place gathers what a place has seen, whosever it is. */
static long gather_place(struct bpf_map *map, __u32 *at, struct recent_flow *r, void *unused)
{
	struct connection_key key;
	struct connection *c;
	__u64 turn;

	if (r->seen.packets_sent == r->told.packets_sent && r->seen.packets_received == r->told.packets_received)
		return 0;
	turn = read_turn(r);
	if (turn & 1)
		return 0;
	if (r->gen)
		return gather_denied(r, turn);
	key = r->key;
	c = bpf_map_lookup_elem(&connections, &key);
	if (c)
		gather(r, turn, c, bpf_ktime_get_ns());
	return 0;
}

/*
 * claim_place returns the place of a flow and its turn, if it is to be had: nobody has to go before his time, but who asks may
 * have another one. What the place has seen is gathered. open_place must follow.
 */
static __always_inline struct recent_flow *claim_place(const struct connection_key *key, __u32 gen, __u8 out, __u8 in, __u64 now,
						       __u64 *claimed)
{
	struct recent_flow *r = flow_in_row(flow_row(), key->cookie, key->raddr[3], key->rport);
	struct connection *before;
	__u64 turn;

	if (!r)
		return NULL;
	turn = read_turn(r);
	if ((turn & 1) || (holds(turn, gen) && now <= r->until && !(same_key(&r->key, key) && (out != r->out || in != r->in))) ||
	    !set_word(&r->turn, turn, turn | 1))
		return NULL;
	before = r->gen ? NULL : bpf_map_lookup_elem(&connections, &r->key);
	if (r->gen)
		gather_denied(r, turn | 1);
	else if (before)
		gather(r, turn | 1, before, now);
	r->told = r->seen; /* of one that has ended nobody needs to know */
	r->key = *key;
	r->out = out;
	r->in = in;
	*claimed = turn;
	return r;
}

/* open_place lets everybody read the place from now on. */
static __always_inline void open_place(struct recent_flow *r, __u64 turn, __u32 gen)
{
	__sync_lock_test_and_set(&r->turn, (__u64)gen << 32 | (__u32)(turn + 2));
}

/*
 * remember_flow gives a flow that has been allowed by this state of its subject a place. Where more than flow and generation
 * counts there is none.
 */
static __noinline int remember_flow(const struct connection_key *key, struct connection *c, __u64 state)
{
	__u64 word = READ_ONCE(c->word), now = bpf_ktime_get_coarse_ns(), turn, silence;
	struct settings *cfg = get_config();
	__u32 gen = generation();
	struct recent_flow *r;

	if (!cfg || c->packets_sent + c->packets_received < FLOW_PACKETS || cfg->processes || (word & FLOW_LOOP) ||
	    ((__u32)state & (SUBJECT_EXCEPTIONS | SUBJECT_LOCAL_SETS)) || state_at(word_subject(word), gen) != state)
		return 0;
	r = claim_place(key, gen, c->replied || (word & FLOW_OUT) ? MAY_PASS : UNHEARD,
			c->replied || !(word & FLOW_OUT) ? MAY_PASS : UNHEARD, now, &turn);
	if (!r)
		return 0;
	r->gen = 0;
	silence = cfg->unreplied / 8;
	r->until = now + (silence < FLOW_HOLDS ? silence : FLOW_HOLDS);
	__sync_fetch_and_or(&c->rows, 1ull << flow_row());
	open_place(r, turn, gen);
	return 0;
}

/*
 * remember_denied gives datagrams of one sender, of a kind that is denied, a place: a flood of them must cost no more than one that
 * may pass. All that the verdict depends on in this generation of the subject is in the kind, see depends_on_kind; but once the
 * socket has begun another flow, which is seen by its entry or by the number of its openings, it may be an answer.
 */
GLOBAL int remember_denied(const struct connection_key *key, const struct denial_key *kind, __u32 gen, __u32 openings)
{
	__u64 now = bpf_ktime_get_coarse_ns(), turn;
	struct recent_flow *r;

	if (!key || !kind)
		return 0;
	r = claim_place(key, gen, kind->dir == OUT ? MAY_NOT : UNHEARD, kind->dir == IN ? MAY_NOT : UNHEARD, now, &turn);
	if (!r)
		return 0;
	if (bpf_map_lookup_elem(&connections, key))
		r->out = r->in = UNHEARD;
	r->gen = kind->gen;
	r->subject = kind->subject;
	r->tgid = kind->tgid;
	r->openings = openings;
	r->until = now + FLOW_HOLDS;
	open_place(r, turn, gen);
	return 0;
}

/*
 * lately says what becomes of a packet by what has become of others a moment ago. A socket in one of these two states is a
 * whole one; one that listens, or begins or ends a connection, is in another.
 */
static __always_inline int lately(struct __sk_buff *skb, struct bpf_sock *sk, bool egress)
{
	__u32 state = sk->state;
	struct sock *k;
	__u64 cookie;

	if (!can_recall() || (state != TCP_ESTABLISHED && state != TCP_CLOSE))
		return UNHEARD;
	k = known_socket(sk);
	cookie = k->__sk_common.skc_cookie.counter;
	if (k->sk_protocol == IPPROTO_TCP)
		return state == TCP_ESTABLISHED && is_recent_connection(cookie) ? MAY_PASS : UNHEARD;
	return k->sk_protocol == IPPROTO_UDP ? on_recent_flow(skb, cookie, egress) : UNHEARD;
}

#endif
