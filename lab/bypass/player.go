package bypass

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

type family = scenario.Family

const v4, v6 = scenario.V4, scenario.V6

// Verb is the hidden verb by which the program plays the parts of the range.
const Verb = "bypass-player"

// Spec is what a player knows. All of them know the same but for Role.
type Spec struct {
	Role    string // breached, helper, secret, vault or news
	Dir     string // of the sockets by which they are told what to do
	Self    []string
	Cgroups map[string]string // by role
	Own     map[family]netip.Addr
	Target  map[family]netip.Addr // the vault
	Allowed map[family]netip.Addr // the news
	Spare   map[family]netip.Addr // that nobody has
	Hub     map[family]netip.Addr // where broadcasts go
	MAC     string                // of the vault
}

// control is where a player takes orders.
func (s *Spec) control(role string) string { return filepath.Join(s.Dir, role) }

// order is what a player is told to do.
type order struct {
	Do         string // try, seen, mac, call, allowed
	Technique  string
	Family     family
	Token      string
	Tokens     []string
	Descriptor bool           // an open socket has been inherited
	To         netip.AddrPort // call
}

type answer struct {
	Err     string // "" for none
	Errno   string // its name, where it is of the kernel
	Refused bool   // the kernel does not know how to do that
	Seen    map[string]sight
	MAC     string
}

// patience is how long anything that must happen may take on a busy machine.
const patience = 20 * time.Second

// Play plays one part until its process is killed; with once it obeys a single order, from in, and answers it to out.
func Play(ctx context.Context, path string, once bool, in io.Reader, out io.Writer) error {
	spec, err := traffic.ReadSpec[Spec](path)
	if err != nil {
		return err
	}
	p := &player{Spec: spec}
	if once {
		var o order
		if err := json.NewDecoder(in).Decode(&o); err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(p.obey(&o, true))
	}
	if err := p.prepare(); err != nil {
		return err
	}
	l, err := net.Listen("unix", spec.control(spec.Role))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var o order
		err = json.NewDecoder(c).Decode(&o)
		if err == nil {
			err = json.NewEncoder(c).Encode(p.obey(&o, false))
		}
		if err := errors.Join(err, c.Close()); err != nil {
			fmt.Fprintf(os.Stderr, "order: %v\n", err) // whoever gave it went away
		}
	}
}

type player struct {
	*Spec
	witness *witness
}

// prepare makes the part ready: whoever watches begins to, and the kernels involved are told to allow whatever they can be
// told to, so that it is not they who stop the attempts.
func (p *player) prepare() error {
	set := map[string]string{
		"net/ipv4/tcp_fastopen":     "1543", // data in SYN, without a cookie, at both ends
		"net/ipv4/ping_group_range": "0 2147483647",
		// What a packet socket puts on the loopback interface is not taken for a stranger's.
		"net/ipv4/conf/lo/route_localnet": "1", "net/ipv4/conf/lo/accept_local": "1",
	}
	for _, c := range []string{"all", "default", "eth0"} {
		set["net/ipv4/conf/"+c+"/accept_source_route"] = "1"
		set["net/ipv4/conf/"+c+"/rp_filter"] = "0"
		set["net/ipv4/conf/"+c+"/send_redirects"] = "0"
		set["net/ipv6/conf/"+c+"/accept_source_route"] = "1"
		set["net/ipv6/conf/"+c+"/seg6_enabled"] = "1"
	}
	if p.Role == "news" { // it passes on what asks it to
		set["net/ipv4/ip_forward"] = "1"
		set["net/ipv6/conf/all/forwarding"] = "1"
	}
	for key, value := range set {
		// Opened by this process, /proc/sys/net shows its namespace. A kernel that lacks one of them lacks what it is for.
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var err error
	switch p.Role {
	case "vault":
		p.witness, err = watch(append(ports(false), openPort), "eth0", "")
	case "news": // somebody is there
		p.witness, err = watch(ports(false), "", "")
	case "secret":
		p.witness, err = watch(ports(true), "", p.control("secret-unix"))
	case "helper":
		err = p.hand()
	}
	return err
}

func (p *player) obey(o *order, alone bool) *answer {
	switch o.Do {
	case "seen":
		return &answer{Seen: p.witness.report(o.Tokens)}
	case "mac":
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return failed(err)
		}
		return &answer{MAC: link.HardwareAddr.String()}
	case "allowed":
		return failed(sendTo(netip.AddrPortFrom(p.Target[o.Family], openPort), unix.IPPROTO_UDP, o.Token))
	case "call":
		return failed(p.witness.call(o.To))
	case "try":
		t := find(o.Technique)
		if t == nil {
			return failed(fmt.Errorf("no technique %q", o.Technique))
		}
		if t.alone != nil && !alone {
			return p.apart(t, o)
		}
		if t.alone != nil && t.alone.user != 0 {
			// Not when it is started: the program may lie where only root can execute it.
			if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(t.alone.user, t.alone.user, t.alone.user),
				syscall.Setresuid(t.alone.user, t.alone.user, t.alone.user)); err != nil {
				return failed(err)
			}
		}
		return failed(t.try(&attempt{Spec: p.Spec, technique: t, family: o.Family, token: o.Token, port: t.port(), order: o}))
	}
	return failed(fmt.Errorf("unknown order %q", o.Do))
}

func failed(err error) *answer {
	if err == nil {
		return &answer{}
	}
	a := &answer{Err: err.Error(), Refused: errors.Is(err, errRefused) || lacking(err)}
	var no syscall.Errno
	if errors.As(err, &no) {
		a.Errno = unix.ErrnoName(no)
	}
	return a
}

// errRefused says that it is the kernel that does not let it happen, whatever policy says.
var errRefused = errors.New("the kernel refuses it")

// lacking reports whether the kernel does not have what was asked for.
func lacking(err error) bool {
	for _, e := range []error{unix.EPROTONOSUPPORT, unix.ESOCKTNOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.ENOPROTOOPT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// process is how a technique runs that changes the process it runs in: as another user, in another cgroup.
type process struct {
	user   int // 0: root
	cgroup func(*Spec) (string, error)
	socket func(*attempt) (*os.File, error) // that it inherits
}

// apart obeys an order in a process of its own, which ends with it.
func (p *player) apart(t *technique, o *order) *answer {
	cmd := exec.Command(p.Self[0], append(p.Self[1:], "--once")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if t.alone.cgroup != nil {
		path, err := t.alone.cgroup(p.Spec)
		if err != nil {
			return failed(err)
		}
		dir, err := os.Open(path)
		if err != nil {
			return failed(err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if t.alone.socket != nil {
		f, err := t.alone.socket(&attempt{Spec: p.Spec, technique: t, family: o.Family, token: o.Token, port: t.port(), order: o})
		if err != nil {
			return failed(err)
		}
		defer f.Close()
		cmd.ExtraFiles, o.Descriptor = []*os.File{f}, true
	}
	in, err := json.Marshal(o)
	if err != nil {
		return failed(err)
	}
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
	if err := cmd.Run(); err != nil {
		return failed(fmt.Errorf("%w: %s", err, errs.String()))
	}
	a := new(answer)
	if err := json.Unmarshal(out.Bytes(), a); err != nil {
		return failed(err)
	}
	return a
}

// ask gives an order to a player and returns its answer.
func ask(ctx context.Context, path string, o *order) (*answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%s does not answer", filepath.Base(path)))
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := json.NewEncoder(c).Encode(o); err != nil {
		return nil, err
	}
	a := new(answer)
	if err := json.NewDecoder(c).Decode(a); err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	return a, nil
}
