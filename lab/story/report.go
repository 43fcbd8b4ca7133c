package story

import (
	"encoding/json"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what the story found, for scripts.
type Report struct {
	Scenario string        `json:"scenario"`
	Title    string        `json:"title"`
	Good     bool          `json:"good"`
	Started  time.Time     `json:"started"`
	Took     time.Duration `json:"took_ns"`
	Machine  Machine       `json:"machine"`
	Steps    []Step        `json:"steps"`
}

// Machine is where it ran.
type Machine struct {
	Kernel   string `json:"kernel"`
	CPUs     int    `json:"cpus"`
	Database string `json:"database"` // "PostgreSQL", or "played" where it is not installed
}

// Step is one of the seven.
type Step struct {
	Number   int           `json:"number"`
	Name     string        `json:"name"`
	Good     bool          `json:"good"`
	Summary  string        `json:"summary"`
	Problems []string      `json:"problems,omitempty"`
	Figures  []Figure      `json:"figures"`
	Commands []string      `json:"commands"`
	Took     time.Duration `json:"took_ns"`
}

// Figure is one number, or one short text.
type Figure struct {
	Key   string `json:"key"` // for scripts
	Label string `json:"-"`   // for people
	Value any    `json:"value"`
	Unit  string `json:"unit,omitempty"`
	Note  string `json:"note,omitempty"`
}

func machine(real bool) Machine {
	m := Machine{CPUs: runtime.NumCPU(), Database: "played by the traffic program"}
	if real {
		m.Database = "PostgreSQL"
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		m.Kernel = strings.TrimRight(string(u.Release[:]), "\x00")
	}
	return m
}

// Write writes the report as JSON.
func (r *Report) Write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// Bad lists the names of the steps that are not good.
func (r *Report) Bad() []string {
	var out []string
	for i := range r.Steps {
		if !r.Steps[i].Good {
			out = append(out, r.Steps[i].Name)
		}
	}
	return out
}
