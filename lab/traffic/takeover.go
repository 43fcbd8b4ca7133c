package traffic

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/lab/scenario"
)

// Takeover is the message that a way in accepts.
type Takeover struct {
	Token string `json:"token"`
	By    string `json:"by"`  // the workload it comes from
	Via   string `json:"via"` // the port, as documents spell it
}

// TakeoverReply is the answer.
type TakeoverReply struct {
	Taken bool   `json:"taken"`         // the worm runs there now
	Why   string `json:"why,omitempty"` // why not
}

// TakeOver sends the takeover message over an open connection and waits for the answer. The caller sets deadlines.
func TakeOver(conn net.Conn, proto model.Proto, speak scenario.Speak, id string, m *Takeover) (*TakeoverReply, error) {
	if speak == scenario.SpeakModbus {
		return modbusTakeOver(conn, m)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if _, err := writeFrame(conn, &frame{kind: frameTakeover, id: id, body: body}); err != nil {
		return nil, err
	}
	var f *frame
	if proto == model.ProtoUDP {
		buf := make([]byte, 2048)
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		f, err = parseDatagram(buf[:n])
		if err != nil {
			return nil, err
		}
	} else if f, err = readFrame(conn); err != nil {
		return nil, err
	}
	if f.kind != frameTaken {
		return &TakeoverReply{Why: "the service took it for a request"}, nil
	}
	var reply TakeoverReply
	return &reply, json.Unmarshal(f.body, &reply)
}

// wayIn judges a takeover message that came to a listener.
func (w *workload) wayIn(body []byte, l Listen, from, at netip.Addr) *TakeoverReply {
	var m Takeover
	switch {
	case !l.WayIn:
		return &TakeoverReply{Why: "the service is hardened"}
	case !w.spec.inLab(from) || !w.spec.inLab(at):
		return &TakeoverReply{Why: "not an address of the lab"}
	case json.Unmarshal(body, &m) != nil:
		return &TakeoverReply{Why: "not a takeover message"}
	case w.spec.Worm.Token == "" || subtle.ConstantTimeCompare([]byte(m.Token), []byte(w.spec.Worm.Token)) != 1:
		return &TakeoverReply{Why: "the token is not that of this lab"}
	}
	if err := w.worm.start(m.By, m.Via); err != nil {
		return &TakeoverReply{Why: err.Error()}
	}
	return &TakeoverReply{Taken: true}
}

// wormHost starts the worm as a child of the process: in its cgroup, in its namespace, with its rights.
type wormHost struct {
	workload *workload
	mu       sync.Mutex
}

var errTaken = errors.New("taken already")

// start starts the worm, unless this workload has it: a host may have several processes with a way in.
func (h *wormHost) start(by, via string) (err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	spec := h.workload.spec.Worm
	if spec.Program == "" {
		return fmt.Errorf("no worm in this lab")
	}
	fresh, err := Mark(spec.Markers, h.workload.spec.ID)
	if err != nil {
		return err
	}
	if !fresh {
		return errTaken
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unmark(spec.Markers, h.workload.spec.ID))
		}
	}()
	if err := h.workload.ledger.Write(TakenEntry(h.workload.spec.ID, by, via)); err != nil {
		return err
	}
	cmd := exec.Command(spec.Program, spec.Args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// The worm ends when its standard input does: with this process, however it dies.
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		if err := cmd.Wait(); err != nil {
			fmt.Fprintf(os.Stderr, "worm: %v\n", err)
		}
		lifeline.Close()
	}()
	return nil
}

// Mark notes in the directory that the worm has taken the workload, and reports whether it had not before.
func Mark(dir, workload string) (bool, error) {
	f, err := os.OpenFile(markPath(dir, workload), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

func unmark(dir, workload string) error { return os.Remove(markPath(dir, workload)) }

const finished = ".done"

// MarkDone notes that the worm has tried everything from the workload.
func MarkDone(dir, workload string) error {
	return os.WriteFile(markPath(dir, workload)+finished, nil, 0o644)
}

func markPath(dir, workload string) string {
	return filepath.Join(dir, strings.ReplaceAll(workload, "/", "_"))
}

// Marked returns how many workloads the worm has taken, and in how many of them it has tried everything.
func Marked(dir string) (taken, done int, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), finished) {
			done++
		} else {
			taken++
		}
	}
	return taken, done, err
}

// TakenEntry is the entry about a workload that the worm has taken.
func TakenEntry(workload, by, via string) *Entry {
	now := time.Now().UnixNano()
	return &Entry{Role: RoleTaken, Start: now, End: now, From: workload, By: by, Via: via}
}
