/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs and the agent share: keys and values of maps, and events. Addresses are 16 bytes in network
 * order; IPv4 is mapped (::ffff:a.b.c.d), also where IPv6 sockets carry it. Ports are in host order.
 */
#ifndef BULKHEAD_TYPES_H
#define BULKHEAD_TYPES_H

#include <linux/types.h>

/* Verdicts, as model.Verdict counts them. */
enum verdict {
	DENY = 0,
	WOULD_DENY = 1,
	ALLOW = 2,
};

/* Directions, as model.Direction counts them. */
enum direction {
	IN = 0,
	OUT = 1,
};

/* Rules that no policy names. The agent knows their names; hashes of other rules are never this small. */
enum fixed_rule {
	RULE_OPEN = 1,
	RULE_SAME_WORKLOAD,
	RULE_CONTROLLER,
	RULE_DHCP,
	RULE_ND,
	RULE_ICMP_ERROR,
	RULE_MISSING, /* no row judged the packet: the policy in the kernel is damaged */
	RULE_BEFORE,  /* there is no policy yet */
	RULE_BREAK_GLASS,
	RULE_AGENT_LOST,
	RULE_SPOOFED, /* the source address is another's */
};

/* The subject that is whatever no unit owns. */
#define HOST 0u

/*
 * Policy as a whole has a generation, in the map active. Everything that may change with it is kept twice, for the
 * generation in force and for the one before or the one to come: storing the next generation is the single moment at
 * which all of it changes. Even generations are in bank 0, odd ones in bank 1.
 *
 * State of a subject in a bank: generation << 32 | policy set << 8 | flags. The generation is that of the last change
 * that concerned the subject: a verdict cached under another one is void.
 */
struct subject {
	__u64 state[2];
	__u64 sets[2]; /* the agent's own: isolation set << 32 | normal set << 8 | flags, what Isolate changes between */
};

#define SUBJECT_LOCAL_SETS 1u       /* local addresses may have policy sets of their own, */
#define SUBJECT_LOCAL_IDENTITIES 2u /* and identities */
#define SUBJECT_ISOLATED 4u         /* the agent's own mark; the programs do not look at it */
#define SUBJECT_LOSS_OPEN 8u        /* everything passes while the agent is lost, */
#define SUBJECT_LOSS_CLOSED 16u     /* or nothing but essentials does */
#define SUBJECT_GLASS 32u           /* everything passes until settings.glass_until */
#define SUBJECT_EXCEPTIONS (SUBJECT_LOSS_OPEN | SUBJECT_LOSS_CLOSED | SUBJECT_GLASS)

static __inline __attribute__((always_inline)) __u32 state_gen(__u64 state) { return state >> 32; }
static __inline __attribute__((always_inline)) __u32 state_pset(__u64 state) { return ((__u32)state) >> 8; }

/*
 * State of a flow, one aligned 64-bit word that is only changed by compare-and-swap, so that two packets of one flow on
 * two processors never mix two verdicts: generation << 32 | subject << 16 | flags.
 */
#define FLOW_VERDICT 0x0003u
#define FLOW_OUT 0x0004u      /* this host opened it */
#define FLOW_DIR 0x0008u      /* the direction is known */
#define FLOW_JUDGED 0x0010u   /* the verdict holds for the generation */
#define FLOW_OPENED 0x0020u   /* its opening has been reported */
#define FLOW_EXISTING 0x0040u /* it was there before the first policy */
#define FLOW_LOOP 0x0080u     /* the other end is on this host */
#define FLOW_CONNECT 0x0100u  /* judged when connect() was called, under the generation */
#define FLOW_TUPLE 0x0200u    /* addresses and ports are recorded */
#define FLOW_SEEN 0x0400u     /* judged at least once: rule and verdict are those of the last time */
#define FLOW_NAMED 0x0800u    /* judged by a host name, the last time */

static __inline __attribute__((always_inline)) __u32 word_gen(__u64 word) { return word >> 32; }
static __inline __attribute__((always_inline)) __u32 word_subject(__u64 word) { return ((__u32)word) >> 16; }
static __inline __attribute__((always_inline)) __u64 make_word(__u32 gen, __u32 subject, __u32 flags)
{
	return ((__u64)gen << 32) | ((subject & 0xffff) << 16) | (flags & 0xffff);
}

/* The process that made a socket, or that last called connect or sendmsg on it. */
struct process {
	__u64 start; /* nanoseconds since boot */
	__u64 cgroup;
	__u64 path; /* hash of the executable's path, see process.h; 0: not known */
	__u32 tgid;
	__u32 uid;   /* effective */
	__u32 exec;  /* changes when the process executes another program */
	__u32 paths; /* settings.paths at the time */
	char comm[16];
};

/* Processes that were there before paths mattered. */
struct process_key {
	__u64 start;
	__u32 tgid;
	__u32 pad;
};

/* A flow as it is judged, and the key of what is remembered about one. */
struct flow {
	__u32 laddr[4];
	__u32 raddr[4];
	__u16 lport; /* of ICMP the identifier of an echo */
	__u16 rport;
	__u16 port; /* destination port of the flow; of ICMP type << 8 | code */
	__u8 proto;
	__u8 dir;
};

struct decision {
	__u64 rule;
	__u64 peer; /* identity */
	__u64 unit; /* that rules may name, in which the process at this end is; what is known before the judgement */
	__u16 rsubject; /* subject + 1 if the other end is on this host, else 0 */
	__u8 verdict;
	__u8 named;     /* judged by a name of the other end */
	__u8 was_named; /* and it was so before: names whose time is over count too. Known before the judgement */
	__u8 pad[3];
};

/* A number that changes with policy: cur holds from generation since on, prev before. Zero is none. */
struct versioned {
	__u64 cur;
	__u64 prev;
	__u32 since;
	__u8 cur_shared;
	__u8 prev_shared;
	__u8 pad[2];
};

struct subject_info {
	struct versioned identity;
	char name[256]; /* the agent's own: of the workload */
};

struct net_key {
	__u32 bits;
	__u32 addr[4];
};

struct port_key {
	__u32 addr[4];
	__u16 port;
	__u8 proto;
	__u8 pad;
};

struct local_key {
	__u32 addr[4];
	__u32 subject;
};

/*
 * Rows of policy. Each peer has one of kind ROW_ANY, which holds where no other does and names the function of protocol
 * and port that judges the peer; peers with equal verdicts share one. ROW_PROTO and ROW_PORT, and ranges, are of
 * functions: key.peer is the function's number.
 */
#define ROW_ANY 0u
#define ROW_PROTO 2u
#define ROW_PORT 4u

struct row_key {
	__u64 peer;
	__u32 pset;
	__u16 port;
	__u8 proto;
	__u8 kind; /* direction | ROW_* */
};

/* Flags of a ROW_ANY row: which more specific rows its function has. */
#define HAS_PORT 1u
#define HAS_RANGE 2u
#define HAS_PROTO 4u

struct row {
	__u64 rule;
	__u32 function;
	__u8 verdict;
	__u8 has;
	__u16 list; /* of alternatives for some processes; 0: none */
};

/* The alternatives of a row, in the order in which they are asked. */
struct alternative_key {
	__u32 pset;
	__u16 list;
	__u16 index;
};

struct alternative {
	__u64 rule;
	__u64 unit;
	__u64 path;
	__u32 user;
	__u8 has; /* which of the constraints it has */
	__u8 verdict;
	__u8 pad[2];
};

#define HAS_UNIT 1u
#define HAS_PATH 2u
#define HAS_USER 4u

#define MAX_ALTERNATIVES 64

struct range_key {
	__u32 bits;
	__u32 pset;
	__u32 function;
	__u8 dir;
	__u8 proto;
	__u16 port; /* network order: bits count from the front */
};

/*
 * Host names. The patterns that rules name have numbers, from 0 on, in an epoch: another list of patterns is another epoch,
 * so that what is known under both may be there at once. Times are seconds since boot.
 */
struct pattern_key {
	__u32 bits;
	__u32 epoch;
	__u8 text[248]; /* the name from its end to its begin, then a zero, or for names under it a dot and no zero */
};

/* What an address without owner is by a name that the pattern covers, if it is base without. */
struct domain_key {
	__u64 base;
	__u32 epoch;
	__u32 pattern;
};

struct learnt_key {
	__u32 addr[4];
	__u32 epoch;
};

#define NAMES 8 /* patterns that one address may have names of at a time */

struct address_names {
	__u64 slots[NAMES]; /* pattern + 1 << 32 | until when; 0 is free. The first one is LEARNT_GONE before the entry goes */
	__u64 names[NAMES]; /* hash of the last name of each */
	__u64 used;         /* when a live connection that was judged by it was last seen */
};

#define LEARNT_GONE ~0ull
#define NAME_KEPT 600 /* seconds after its time, or after the last connection judged by it, that a name may be forgotten */

/* Every name that an answer told, so that patterns which come later find it. */
struct answer_key {
	__u64 name; /* hash */
	__u32 addr[4];
};

struct answer {
	__u32 until;
	__u32 used;
	__u8 text[248]; /* as in struct pattern_key */
};

/* What the programs note about all names. */
struct name_totals {
	__u64 forgotten; /* second in which a full map of addresses was last cleaned */
	__u64 addresses; /* how many had a name that rules know, */
	__u64 names;     /* and how many pairs of any name and address there were, when they were last counted */
};

/* A question on its way. */
struct question_key {
	__u64 cookie; /* of the socket */
	__u16 lport;
	__u16 id;
	__u32 pad;
};

struct question {
	__u64 name; /* hash */
	__u32 asked;
	__u32 pad;
};

#define QUESTION_OPEN 30 /* seconds that an answer may take */

/* What is remembered about a socket. Of a socket without a fixed peer, flow is the last one it began. */
struct socket_state {
	__u64 word;
	__u64 cgroup; /* of the socket, which is that of its maker */
	struct process process;
	__u64 rule;
	__u64 peer;
	struct flow flow;
	__u16 rsubject;
	__u8 pad[6];
	__u64 sent; /* bytes already reported */
	__u64 received;
};

/*
 * Flows of sockets that may talk to many peers: UDP, ICMP, raw. The cookie makes a new socket a new flow, also with a
 * port that was used a moment ago, and keeps network namespaces apart.
 */
struct connection_key {
	__u64 cookie;
	__u32 raddr[4];
	__u16 rport;
	__u16 lport;
	__u8 proto;
	__u8 pad[3];
};

struct connection {
	__u64 word;
	__u64 last;   /* time of the last packet */
	__u64 judged; /* time of the last judgement */
	__u64 rule;
	__u64 peer;
	struct process process;
	__u32 laddr[4];
	__u16 port;
	__u16 rsubject;
	__u8 replied;
	__u8 pad[3];
	__u64 sent, received, packets_sent, packets_received;
	__u64 told_sent, told_received, told_packets_sent, told_packets_received;
	__u64 rows; /* in which it has had a place, see recent.h: a bit each */
};

/*
 * Denials of one kind, folded: at most one event a second. One that is silent for a second is forgotten. Where the rest of
 * the key is all that the verdict depends on in a generation, that is in the place of the rule: then the entry is the
 * verdict too, and the next packet of the kind need not be judged.
 */
struct denial_key {
	__u64 rule; /* or 0 */
	__u32 raddr[4];
	__u32 tgid;
	__u32 gen; /* of the subject, or 0 */
	__u16 subject;
	__u16 port;
	__u8 proto;
	__u8 dir;
	__u8 pad[2];
};

struct denial {
	__u64 state; /* time of the last event in ticks, then the number of attempts since, or DENIAL_GONE */
	struct process process;
	struct flow flow;
	struct decision decision;
	__u64 filled;
};

#define DENIAL_PENDING 24 /* bits of the attempts */
#define DENIAL_MAX ((1ull << DENIAL_PENDING) - 1)
#define DENIAL_TICK 20 /* a tick is 2^20 ns, about a millisecond */
#define DENIAL_EVERY 1000 /* ticks */
#define DENIAL_TRIES 16
#define DENIAL_GONE ~0ull

/* A connection attempt that was denied here; a retransmission has the same sequence number. */
struct attempt_key {
	__u64 cookie; /* of the listener */
	__u32 laddr[4];
	__u32 raddr[4];
	__u16 rport;
	__u8 pad[6];
};

enum event_kind {
	EVENT_OPEN = 1,
	EVENT_DENY,
	EVENT_UPDATE,
	EVENT_CLOSE,
};

#define EVENT_REJUDGED 1u
#define EVENT_EXISTING 2u

struct event {
	__u64 time; /* nanoseconds since boot */
	__u64 rule;
	__u64 peer;
	__u64 count;
	__u64 sent, received, packets_sent, packets_received;
	struct process process;
	struct flow flow;
	__u16 subject;
	__u16 rsubject;
	__u8 kind;
	__u8 verdict;
	__u8 flags;
	__u8 pad;
};

enum counter {
	COUNT_JUDGED,
	COUNT_ALLOWED,
	COUNT_WOULD_DENIED,
	COUNT_DENIED,
	COUNT_DROPPED,
	COUNT_LOST,
	COUNT_ERRORS,
	COUNT_UNLEARNT,
	COUNT_TRANSIT,
	COUNTERS,
};

#define MAX_LEVELS 8

#define NO_LEVEL 0xffffffffu

struct settings {
	__u64 own_netns;   /* cookie of the namespace whose addresses the map own lists, */
	__u64 own_inode;   /* and its inode number */
	__u64 root_cgroup; /* id of the cgroup that the programs are attached to */
	__u64 unreplied;   /* nanoseconds of silence that end a flow of connections */
	__u64 replied;
	__u64 installed;   /* when the dataplane was set up; 0 while it is not */
	__u64 levels;      /* of cgroups in the map cgroups, a byte each, the deepest in the lowest, 0 ends */
	__u64 path_key[2]; /* of the hash of paths */
	__u64 beat;        /* when the agent last said that it is there, as bpf_ktime_get_ns; 0: never */
	__u64 patience;    /* nanoseconds without a beat after which the agent is lost */
	__u64 glass_until; /* as bpf_ktime_get_boot_ns */
	__u64 epochs[2];   /* of host names, by bank like states; 0: no rule names hosts */
	__u64 next_epoch;  /* one that is being prepared, or 0 */
	__u64 last_epoch;  /* the agent's own: the highest that was ever given */
	__u64 name_key[2]; /* of the hash of names */
	__u32 units_since; /* generation at which the map cgroups last changed */
	__u32 root_level;  /* of root_cgroup, or NO_LEVEL */
	__u32 paths;       /* nonzero: rules are for some executables; another number each time that begins */
	__u32 processes;   /* whether rules are for some processes */
	__u32 ttl_floor;   /* seconds for which a name holds at least, */
	__u32 ttl_ceiling; /* and at most */
};

/*
 * An interface that is guarded, because frames pass it that no inet socket of this host sends or receives: one behind which
 * somebody else's network stack is (a port), or one that leads away from this host (an uplink).
 */
struct guarded {
	__u64 cgroup; /* topmost cgroup of the unit whose stack is behind the port; 0: no unit's */
	__u32 netns;  /* of that stack, as the namespace of the host numbers it, or NO_NETNS */
	__u8 raw;     /* frames have no Ethernet header */
	__u8 pad[3];
};

#define NO_NETNS 0xffffffffu

/* Flows that are judged at an interface. The local end is the one behind the port, or this host. */
struct passage_key {
	__u32 laddr[4];
	__u32 raddr[4];
	__u32 ifindex; /* of the port; PASSAGE_UPLINK beside the interface that a packet socket of this host sends by */
	__u16 lport;
	__u16 rport;
	__u8 proto;
	__u8 pad[3];
};

#define PASSAGE_UPLINK 0x80000000u

struct passage {
	__u64 word;
	__u64 last; /* time of the last packet */
	__u64 rule;
	__u64 peer;
	__u64 sent, received, packets_sent, packets_received;
	__u64 told_sent, told_received, told_packets_sent, told_packets_received;
	__u16 port;
	__u16 rsubject;
	__u8 replied;
	__u8 closing; /* TCP: CLOSED_HERE | CLOSED_THERE */
	__u8 quiet;   /* a socket's flow, which is told at the cgroup */
	__u8 pad;
};

#define CLOSED_HERE 1u
#define CLOSED_THERE 2u
#define CLOSED (CLOSED_HERE | CLOSED_THERE)

/* Fragments of one packet. */
struct piece_key {
	__u32 src[4];
	__u32 dst[4];
	__u32 id;
	__u32 ifindex;
	__u8 proto;
	__u8 pad[3];
};

/* What bulkhead_flush is told. */
struct flush {
	__u64 updates; /* whether to tell what live flows have carried */
};

/* Argument and answer of the probe program. */
struct probe {
	struct flow flow;
	__u32 subject;
	__u16 rsubject;
	__u8 recall;   /* whether what is remembered counts, */
	__u8 recalled; /* and whether it did */
	__u64 unit;
	__u64 path;
	__u64 user;
	struct decision decision;
};

#endif
