/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which process uses a socket: its user, its unit and its executable. An executable is known by a keyed hash of its
 * path, so that nobody without the key can make another path with the same number, and a path of any length costs
 * eight bytes. The path is that of the file that runs, in the mount namespace it was started in; what a process says
 * about itself (argv, comm, /proc) counts for nothing.
 */
#ifndef BULKHEAD_PROCESS_H
#define BULKHEAD_PROCESS_H

#include "maps.h"

#define NAME_WORDS 32 /* a name in a path has up to 255 bytes */
#define PATH_STEPS 40 /* names and mounts on the way to the root */

/* SipHash-2-4 (Aumasson, Bernstein 2012) over words instead of bytes. */
struct sip {
	__u64 v0, v1, v2, v3;
};

static __always_inline __u64 rotate(__u64 x, int bits) { return x << bits | x >> (64 - bits); }

static __always_inline void sip_round(struct sip *s)
{
	s->v0 += s->v1;
	s->v2 += s->v3;
	s->v1 = rotate(s->v1, 13) ^ s->v0;
	s->v3 = rotate(s->v3, 16) ^ s->v2;
	s->v0 = rotate(s->v0, 32) + s->v3;
	s->v2 += s->v1;
	s->v1 = rotate(s->v1, 17) ^ s->v2;
	s->v3 = rotate(s->v3, 21) ^ s->v0;
	s->v2 = rotate(s->v2, 32);
}

static __always_inline void sip_word(struct sip *s, __u64 word)
{
	s->v3 ^= word;
	sip_round(s);
	sip_round(s);
	s->v0 ^= word;
}

/* first_bytes returns the word without the bytes in memory that come after the first n, which is less than 8. */
static __always_inline __u64 first_bytes(__u64 word, __u32 n)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return word & ((1ull << (8 * n)) - 1);
#else
	return word & ~(~0ull >> (8 * n));
#endif
}

/*
 * hash_name adds a name of a path: its bytes in words, filled up with zeros, and its length. The kernel keeps names
 * where a word begins, so that a word that begins in one can be read whole.
 */
GLOBAL int hash_name(struct sip *s, __u64 name, __u32 length)
{
	__u32 i;

	if (!s || length > 8 * NAME_WORDS)
		return 1;
	for (i = 0; i < NAME_WORDS; i++) {
		__u64 word = 0;

		if (8 * i >= length)
			break;
		if (bpf_probe_read_kernel(&word, sizeof(word), (void *)(name + 8 * i)))
			return 1;
		if (8 * i + 8 > length)
			word = first_bytes(word, length - 8 * i);
		sip_word(s, word);
	}
	sip_word(s, length);
	return 0;
}

/*
 * in_charge reports whether the mount namespace is one that only root can change. In others, which anybody may make
 * where the kernel allows user namespaces, any file may be mounted at any path.
 */
static __always_inline bool in_charge(struct mnt_namespace *ns)
{
	struct user_namespace *owner = NULL, *parent = NULL;

	if (!ns || bpf_core_read(&owner, sizeof(owner), &ns->user_ns) || !owner ||
	    bpf_core_read(&parent, sizeof(parent), &owner->parent))
		return false;
	return !parent;
}

/*
 * path_hash walks from the file of the executable of a task, given by its address, up to the root. It returns 0 if
 * there is no such path.
 */
GLOBAL __u64 path_hash(__u64 of)
{
	struct task_struct *task = (void *)of;
	struct settings *c = get_config();
	struct file *exe = NULL;
	struct mm_struct *mm = NULL;
	struct vfsmount *mnt;
	struct dentry *dentry;
	struct mount *mount;
	struct sip s;
	int i;

	if (!c)
		return 0;
	if (bpf_core_read(&mm, sizeof(mm), &task->mm) || !mm || bpf_core_read(&exe, sizeof(exe), &mm->exe_file) || !exe)
		return 0;
	mnt = BPF_CORE_READ(exe, f_path.mnt);
	dentry = BPF_CORE_READ(exe, f_path.dentry);
	if (!mnt || !dentry)
		return 0;
	mount = (void *)mnt - bpf_core_field_offset(struct mount, mnt);
	if (!in_charge(BPF_CORE_READ(mount, mnt_ns)))
		return 0;
	s.v0 = c->path_key[0] ^ 0x736f6d6570736575;
	s.v1 = c->path_key[1] ^ 0x646f72616e646f6d;
	s.v2 = c->path_key[0] ^ 0x6c7967656e657261;
	s.v3 = c->path_key[1] ^ 0x7465646279746573;
	for (i = 0; i < PATH_STEPS; i++) {
		struct dentry *root = BPF_CORE_READ(mount, mnt.mnt_root), *parent;

		if (dentry == root) {
			struct mount *up = BPF_CORE_READ(mount, mnt_parent);

			if (up == mount) {
				s.v2 ^= 0xff;
				sip_round(&s);
				sip_round(&s);
				sip_round(&s);
				sip_round(&s);
				return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
			}
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = up;
			continue;
		}
		parent = BPF_CORE_READ(dentry, d_parent);
		if (parent == dentry) /* of nothing that is mounted */
			return 0;
		if (hash_name(&s, (__u64)BPF_CORE_READ(dentry, d_name.name), BPF_CORE_READ(dentry, d_name.len)))
			return 0;
		dentry = parent;
	}
	return 0;
}

/* path_of returns the hash of the executable's path; that of a process of before paths mattered has been looked up. */
static __always_inline __u64 path_of(const struct process *p)
{
	struct process_key key = {.start = p->start, .tgid = p->tgid};
	struct settings *c = get_config();
	__u64 *path;

	if (!c || !c->paths)
		return 0;
	if (p->paths == c->paths)
		return p->path;
	path = bpf_map_lookup_elem(&executables, &key);
	return path ? *path : 0;
}

/*
 * pick replaces the decision by that of the first alternative that the process, in d->unit, meets, if it meets one.
 * What is not known of it meets no constraint. The programs judge with hardly any stack left, so that all of this is
 * found out here, by who needs it.
 */
GLOBAL int pick(struct decision *d, const struct process *p, const struct alternative_key *list)
{
	struct alternative_key key;
	struct alternative *alt;
	__u64 path = 0;
	int i;

	if (!d || !list)
		return 0;
	if (p && p->tgid)
		path = path_of(p);
	key = *list;
	for (i = 0; i < MAX_ALTERNATIVES; i++) {
		key.index = i;
		alt = bpf_map_lookup_elem(&alternatives, &key);
		if (!alt)
			return 0;
		if (((alt->has & HAS_UNIT) && alt->unit != d->unit) || ((alt->has & HAS_PATH) && alt->path != path) ||
		    ((alt->has & HAS_USER) && (!p || !p->tgid || alt->user != p->uid)))
			continue;
		d->rule = alt->rule;
		d->verdict = alt->verdict;
		return 0;
	}
	return 0;
}

/* processes_matter reports whether some rule is for some processes only. */
static __always_inline bool processes_matter(void)
{
	struct settings *c = get_config();

	return c && c->processes;
}

/* current_process describes the running process. Only for hooks in process context. */
static __noinline void current_process(struct process *p)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct settings *c = get_config();

	p->tgid = bpf_get_current_pid_tgid() >> 32;
	p->uid = task->cred->euid.val;
	p->cgroup = bpf_get_current_cgroup_id();
	p->start = task->group_leader->start_boottime;
	p->exec = task->self_exec_id;
	p->paths = c ? c->paths : 0;
	p->path = p->paths ? path_hash(bpf_get_current_task()) : 0;
	bpf_get_current_comm(p->comm, sizeof(p->comm));
}

/* is_current reports whether the running process is the one described, as far as verdicts may depend on it. */
static __always_inline bool is_current(const struct process *p)
{
	struct task_struct *task;

	if (p->tgid != bpf_get_current_pid_tgid() >> 32)
		return false;
	if (!processes_matter())
		return true;
	task = bpf_get_current_task_btf();
	return p->exec == (__u32)task->self_exec_id && p->uid == task->cred->euid.val;
}

/* same_process reports whether verdicts for the two are the same. */
static __always_inline bool same_process(const struct process *a, const struct process *b)
{
	return a->tgid == b->tgid && a->exec == b->exec && a->uid == b->uid;
}

#endif
