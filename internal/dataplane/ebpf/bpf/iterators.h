/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the agent runs over all sockets: seeding those that were there before it, judging all of them again and
 * resetting those that are denied, and telling how much has passed. Also the end of every TCP connection.
 */
#ifndef BULKHEAD_ITERATORS_H
#define BULKHEAD_ITERATORS_H

#include "connections.h"
#include "tcp.h"

#define MAX_DEPTH 32

/* subject_by_cgroup walks from the socket's cgroup up to that of a unit, and returns the subject. */
static __noinline __u32 subject_by_cgroup(struct sock *sk)
{
	struct cgroup *cg = sk->sk_cgrp_data.cgroup;
	int i;

	for (i = 0; i < MAX_DEPTH && cg; i++) {
		struct cgroup_subsys_state *parent = cg->self.parent;
		__u32 subject = subject_of_cgroup(cg->kn->id);

		if (subject)
			return subject - 1;
		if (!parent)
			break;
		cg = parent->cgroup;
	}
	return 0;
}

/* unit_by_cgroup does the same for the unit that rules may name as the process's. */
static __noinline __u64 unit_by_cgroup(struct sock *sk)
{
	struct cgroup *cg = processes_matter() ? sk->sk_cgrp_data.cgroup : NULL;
	int i;

	for (i = 0; i < MAX_DEPTH && cg; i++) {
		struct cgroup_subsys_state *parent = cg->self.parent;
		__u64 unit = unit_of_cgroup(cg->kn->id);

		if (unit)
			return unit;
		if (!parent)
			break;
		cg = parent->cgroup;
	}
	return 0;
}

/* is_ours reports whether the socket's cgroup is the one that is judged, or below it. */
static __noinline bool is_ours(struct sock *sk)
{
	struct cgroup *cg = sk->sk_cgrp_data.cgroup;
	struct settings *c = get_config();
	int i;

	for (i = 0; c && i < MAX_DEPTH && cg; i++) {
		struct cgroup_subsys_state *parent = cg->self.parent;

		if (cg->kn->id == c->root_cgroup)
			return true;
		if (!parent)
			break;
		cg = parent->cgroup;
	}
	return false;
}

/* connection_tuple fills in the addresses and ports of a TCP socket. */
static __always_inline void connection_tuple(struct sock_common *sk, struct flow *f)
{
	if (sk->skc_family == AF_INET) {
		map_v4(f->laddr, sk->skc_rcv_saddr);
		map_v4(f->raddr, sk->skc_daddr);
	} else {
		copy_addr(f->laddr, sk->skc_v6_rcv_saddr.in6_u.u6_addr32);
		copy_addr(f->raddr, sk->skc_v6_daddr.in6_u.u6_addr32);
	}
	f->lport = sk->skc_num;
	f->rport = bpf_ntohs(sk->skc_dport);
	f->proto = IPPROTO_TCP;
}

/*
 * bytes_of returns payload bytes sent, without retransmissions, and received. The kernel counts a FIN that it has
 * received as a byte.
 */
static __always_inline void bytes_of(struct tcp_sock *tp, struct sock *sk, __u64 *sent, __u64 *received)
{
	*sent = tp->bytes_sent - tp->bytes_retrans;
	*received = tp->bytes_received;
	if (*received && (sk->__sk_common.skc_flags & (1ul << SOCK_DONE)))
		*received -= 1;
}

/* tell_bytes fills in and submits the event of a connection that has carried so much in all. */
static __always_inline void tell_bytes(struct event *e, struct socket_state *s, __u64 sent, __u64 received)
{
	e->rule = s->rule;
	e->peer = s->peer;
	e->rsubject = s->rsubject;
	e->process = s->process;
	e->flow = s->flow;
	e->sent = take(&s->sent, sent);
	e->received = take(&s->received, received);
	submit(e);
}

/* report_accepted opens the connection that a handshake has just made; see on_listener. */
static __always_inline void report_accepted(struct sock_common *sk, struct socket_state *s)
{
	struct decision d;
	struct handshake *h;
	struct flow f = {};
	__u32 zero = 0;
	__u64 old;

	h = bpf_map_lookup_elem(&handshakes, &zero);
	old = READ_ONCE(s->word);
	if (!h || !h->state || old & (FLOW_JUDGED | FLOW_TUPLE))
		return;
	connection_tuple(sk, &f);
	f.dir = IN;
	f.port = f.lport;
	if (!same_flow(&f, &h->flow))
		return;
	d = h->decision;
	settle(s, old, make_word(state_gen(h->state), h->subject, (old & 0xffff) & ~FLOW_OUT), &f, &d);
}

/*
 * adopt remembers a socket that the kernel has made on behalf of a process, such as those of a multipath TCP socket:
 * the process listens or connects right now, and the socket is in its cgroup.
 */
static __always_inline void adopt(struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct settings *c = get_config();
	struct socket_state *s;

	if (!c || c->root_level == NO_LEVEL || task->flags & PF_KTHREAD ||
	    bpf_get_current_ancestor_cgroup_id(c->root_level) != c->root_cgroup)
		return;
	s = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return;
	begin_socket(s);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(bulkhead_set_state, struct sock *sk, int from, int to)
{
	struct socket_state *s;
	struct tcp_sock *tp;
	struct event *e;
	__u64 word, sent = 0, received = 0;

	/* Of the many changes in the life of a connection, only these say something. */
	if (to != TCP_CLOSE && to != TCP_LISTEN && to != TCP_SYN_SENT && (to != TCP_ESTABLISHED || from != TCP_SYN_RECV))
		return 0;
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!s) {
		if (to == TCP_LISTEN || to == TCP_SYN_SENT)
			adopt(sk);
		return 0;
	}
	if (to == TCP_ESTABLISHED)
		report_accepted(&sk->__sk_common, s);
	if (to != TCP_CLOSE)
		return 0;
	word = READ_ONCE(s->word);
	if (!(word & FLOW_OPENED) || !set_word(&s->word, word, word & ~(__u64)FLOW_OPENED))
		return 0;
	e = new_event(EVENT_CLOSE, word);
	if (!e)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (tp)
		bytes_of(tp, sk, &sent, &received);
	tell_bytes(e, s, sent, received);
	return 0;
}

SEC("iter/bpf_sk_storage_map")
int bulkhead_update(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	struct socket_state *s;
	struct tcp_sock *tp;
	struct event *e;
	__u64 word, sent, received;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!s)
		return 0;
	word = READ_ONCE(s->word);
	if (!(word & FLOW_OPENED))
		return 0;
	if (word & FLOW_NAMED)
		touch_names(s->flow.raddr);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	bytes_of(tp, sk, &sent, &received);
	/* The last byte may be a FIN that is counted and not marked yet. What it is the end of the connection tells. */
	if (received)
		received -= 1;
	if (sent <= READ_ONCE(s->sent) && received <= READ_ONCE(s->received))
		return 0;
	e = new_update(word);
	if (e)
		tell_bytes(e, s, sent, received);
	return 0;
}

/*
 * stays_here reports whether both ends of the connection are in one network namespace, so that its packets find the
 * socket at the other end.
 */
static __always_inline bool stays_here(struct sock_common *sk, const struct flow *f, const struct settings *c)
{
	return same_addr(f->laddr, f->raddr) || is_loopback(f->raddr) ||
	       (sk->skc_net.net->ns.inum == c->own_inode && bpf_map_lookup_elem(&own, f->raddr));
}

static __always_inline __u64 listening_key(struct sock_common *skc)
{
	return (__u64)skc->skc_net.net->ns.inum << 32 | skc->skc_num;
}

/*
 * seed_listener remembers a listener that was there before the dataplane and that no process has open itself: that
 * of a multipath socket.
 */
static __always_inline struct socket_state *seed_listener(struct sock_common *skc)
{
	struct socket_state *s;
	struct process *p;
	struct tcp_sock *tp;
	__u64 key = listening_key(skc);

	p = bpf_map_lookup_elem(&listening, &key);
	tp = bpf_skc_to_tcp_sock(skc);
	if (!p || !tp || !is_ours((struct sock *)tp))
		return NULL;
	s = bpf_sk_storage_get(&sockets, skc, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return NULL;
	s->process = *p;
	s->cgroup = p->cgroup;
	WRITE_ONCE(s->word, make_word(0, 0, FLOW_DIR));
	return s;
}

/* What review says of a TCP socket. */
enum review {
	FINE,
	DENIED,
	UNKNOWN, /* who is at its other end must be asked of the socket itself, by bulkhead_sweep */
};

/*
 * review judges a connection that has not been judged since policy changed for its subject. A listener is told whose it
 * is, so that connect, which cannot find out, knows who listens. Unless the socket is locked its addresses may change
 * under the program: then only those that have been recorded count.
 */
static __always_inline enum review review(struct sock *sk, struct socket_state *s, bool locked)
{
	struct sock_common *skc = &sk->__sk_common;
	struct settings *c = get_config();
	__u32 subject, flags, gen = generation();
	__u64 word = READ_ONCE(s->word), state;
	struct decision d = {};
	struct flow f = {};

	if (!c || skc->skc_state == TCP_CLOSE)
		return FINE;
	if (skc->skc_state == TCP_LISTEN) {
		subject = resolved(word) ? word_subject(word) : subject_by_cgroup(sk);
		begin_listening(s, word, as_of(state_of(subject), gen), subject);
		return FINE;
	}
	if ((word & FLOW_JUDGED) && resolved(word))
		return (word & FLOW_VERDICT) == DENY ? DENIED : FINE;
	subject = subject_by_cgroup(sk);
	state = state_of(subject);
	if (word & FLOW_TUPLE) {
		f = s->flow;
	} else {
		/* A connection that is only being made is judged by its first packet. */
		if (!(word & FLOW_DIR) || skc->skc_state == TCP_SYN_SENT || skc->skc_state == TCP_SYN_RECV)
			return FINE;
		if (!locked)
			return UNKNOWN;
		connection_tuple(skc, &f);
		f.dir = word & FLOW_OUT ? OUT : IN;
		f.port = f.dir == OUT ? f.rport : f.lport;
	}
	flags = word & 0xffff;
	if (!(word & FLOW_TUPLE) && stays_here(skc, &f, c))
		flags |= FLOW_LOOP;
	if (flags & FLOW_LOOP) {
		/* Who is at the other end is not known, or may have changed with the units: its next packet tells. */
		if (state_pset(state) && (!s->rsubject || !reached(word_gen(word), c->units_since)))
			return FINE;
		d.rsubject = s->rsubject;
	}
	d.was_named = !!(word & FLOW_NAMED);
	d.unit = unit_by_cgroup(sk);
	state = as_of(judge(&f, subject, &s->process, &d), gen);
	word = settle(s, word, make_word(state_gen(state), subject, flags), &f, &d);
	return (word & FLOW_JUDGED) && (word & FLOW_VERDICT) == DENY ? DENIED : FINE;
}

/*
 * bulkhead_find reviews the connections of all network namespaces, and writes the inode number of the namespace of each
 * one that bulkhead_sweep must look at. It is quick: it visits nothing but sockets that are ours.
 */
SEC("iter/bpf_sk_storage_map")
int bulkhead_find(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	struct socket_state *s;
	__u32 inode;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!s || review(sk, s, false) == FINE)
		return 0;
	inode = sk->__sk_common.skc_net.net->ns.inum;
	bpf_seq_write(ctx->meta->seq, &inode, sizeof(inode));
	return 0;
}

/* Whether iterators may reset; else the agent does it, by way of the kernel's socket diagnosis. */
volatile const bool resets = true;

/*
 * bulkhead_sweep reviews the connections of the network namespace that it runs in and resets those that are denied. It
 * writes the flow of each of those.
 */
SEC("iter/tcp")
int bulkhead_sweep(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct socket_state *s;
	struct tcp_sock *tp;
	struct flow f;

	if (!skc)
		return 0;
	s = bpf_sk_storage_get(&sockets, skc, 0, 0);
	if (!s && skc->skc_state == TCP_LISTEN)
		s = seed_listener(skc);
	if (s && (READ_ONCE(s->word) & FLOW_NAMED) && (READ_ONCE(s->word) & FLOW_OPENED))
		touch_names(s->flow.raddr);
	tp = bpf_skc_to_tcp_sock(skc);
	if (!s || !tp || review((struct sock *)tp, s, true) != DENIED)
		return 0;
	f = s->flow;
	/* What does not fit any more is written when the iterator comes to this socket again. */
	if (bpf_seq_write(ctx->meta->seq, &f, sizeof(f)) == 0 && resets && bpf_ksym_exists(bpf_sock_destroy))
		bpf_sock_destroy(skc);
	return 0;
}

/* socket_of returns the internet socket behind an open file, if it is in one of our cgroups. */
static __always_inline struct sock *socket_of(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!file)
		return NULL;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return NULL;
	sk = socket->sk;
	if (!sk || (sk->__sk_common.skc_family != AF_INET && sk->__sk_common.skc_family != AF_INET6))
		return NULL;
	return is_ours(sk) ? sk : NULL;
}

/* process_of describes the process of a task that has the socket open. */
static __always_inline void process_of(struct task_struct *task, struct sock *sk, struct process *p)
{
	p->tgid = task->tgid;
	p->uid = task->cred->euid.val;
	p->start = task->group_leader->start_boottime;
	p->exec = task->self_exec_id;
	bpf_probe_read_kernel_str(p->comm, sizeof(p->comm), task->group_leader->comm);
	if (sk->sk_cgrp_data.cgroup)
		p->cgroup = sk->sk_cgrp_data.cgroup->kn->id;
}

/* bulkhead_learn notes the executables of the processes that are there when paths begin to matter. */
SEC("iter/task")
int bulkhead_learn(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct process_key key = {};
	__u64 leader, path;

	if (!task || task->group_leader != task || bpf_core_read(&leader, sizeof(leader), &task->group_leader))
		return 0;
	path = path_hash(leader);
	key.start = task->start_boottime;
	key.tgid = task->tgid;
	if (path)
		bpf_map_update_elem(&executables, &key, &path, BPF_ANY);
	else /* nor what it executed before */
		bpf_map_delete_elem(&executables, &key);
	return 0;
}

/* bulkhead_listening notes who listens on which TCP port. It runs before bulkhead_seed. */
SEC("iter/task_file")
int bulkhead_listening(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = socket_of(ctx);
	struct task_struct *task = ctx->task;
	struct process p = {};
	__u64 key;

	if (!sk || !task || sk->__sk_common.skc_state != TCP_LISTEN)
		return 0;
	/* A multipath socket listens by a TCP socket of the kernel's, on the same port. */
	if (sk->sk_protocol != IPPROTO_TCP && sk->sk_protocol != IPPROTO_MPTCP)
		return 0;
	key = listening_key(&sk->__sk_common);
	process_of(task, sk, &p);
	bpf_map_update_elem(&listening, &key, &p, BPF_NOEXIST);
	return 0;
}

/* who_opened guesses by the ports: a connection at a port on which somebody listens is one that was accepted there. */
static __always_inline __u32 who_opened(struct sock *sk)
{
	__u64 key = listening_key(&sk->__sk_common);

	return bpf_map_lookup_elem(&listening, &key) ? FLOW_DIR : FLOW_DIR | FLOW_OUT;
}

/* is_open reports whether the TCP connection has been made and has not ended. */
static __always_inline bool is_open(struct sock *sk)
{
	__u8 state = sk->__sk_common.skc_state;

	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2;
}

/*
 * bulkhead_seed remembers a socket that was there before the dataplane: its process, who opened its connection, and
 * what had passed by then. Of a connection that was made while only the judging programs were not there it finds out who
 * opened it.
 */
SEC("iter/task_file")
int bulkhead_seed(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = socket_of(ctx);
	struct task_struct *task;
	struct socket_state *s;
	struct tcp_sock *tp;
	__u32 flags;
	__u64 word;

	task = ctx->task;
	if (!sk || !task)
		return 0;
	s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (s) { /* made since the programs were attached, or open in another process too */
		word = READ_ONCE(s->word);
		if (sk->sk_protocol == IPPROTO_TCP && is_open(sk) && !(word & (FLOW_DIR | FLOW_TUPLE)))
			set_word(&s->word, word, make_word(0, 0, (word & 0xffff) | FLOW_EXISTING | who_opened(sk)));
		return 0;
	}
	s = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return 0;
	process_of(task, sk, &s->process);
	s->cgroup = s->process.cgroup;
	flags = FLOW_EXISTING;
	if (sk->sk_protocol == IPPROTO_TCP && sk->__sk_common.skc_state == TCP_LISTEN) {
		flags = FLOW_DIR;
	} else if (sk->sk_protocol == IPPROTO_TCP) {
		flags |= who_opened(sk);
		tp = bpf_skc_to_tcp_sock(sk);
		if (tp)
			bytes_of(tp, sk, &s->sent, &s->received);
	}
	WRITE_ONCE(s->word, make_word(0, 0, flags));
	return 0;
}

#endif
