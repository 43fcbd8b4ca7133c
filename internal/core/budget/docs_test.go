package budget

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDocumented compares the table in docs/enforcement.md with the target.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/enforcement.md")
	if err != nil {
		t.Fatal(err)
	}
	target := EBPF()
	for r := range All() {
		if row := fmt.Sprintf("\n| %s | %s | %d |\n", r, thousands(target.Max[r]), target.EntryBytes[r]); !strings.Contains(string(text), row) {
			t.Errorf("docs/enforcement.md has no row %q", strings.TrimSpace(row))
		}
	}
	if names := fmt.Sprintf("rules have at most %d bytes", target.MaxName); !strings.Contains(string(text), names) {
		t.Errorf("docs/enforcement.md does not say %q", names)
	}
}
