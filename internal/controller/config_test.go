package controller_test

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/controller"
)

func TestConfig(t *testing.T) {
	cfg, err := controller.ParseConfig("c.yaml", []byte(`
data: /srv/bulkhead
listen: "[::]:9443"
advertise: [10.0.0.5:9443, "[fd00::5]:9443"]
socket: /run/b.sock
metrics: unix:/run/m.sock
certificateTTL: 30m
certificateGrace: 0s
logLevel: debug
`))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Data != "/srv/bulkhead" || cfg.Listen != netip.MustParseAddrPort("[::]:9443") || cfg.Socket != "/run/b.sock" ||
		cfg.Metrics != "unix:/run/m.sock" || cfg.CertificateTTL != 30*time.Minute || cfg.CertificateGrace != 0 || cfg.LogLevel != slog.LevelDebug ||
		!slices.Equal(cfg.Advertise, []netip.AddrPort{netip.MustParseAddrPort("10.0.0.5:9443"), netip.MustParseAddrPort("[fd00::5]:9443")}) {
		t.Errorf("config %+v", cfg)
	}
	for _, empty := range []string{"", "# nothing\n", "{}"} {
		if cfg, err := controller.ParseConfig("c.yaml", []byte(empty)); err != nil || cfg.Listen.Port() != 7443 || cfg.CertificateTTL != time.Hour || cfg.CertificateGrace != 720*time.Hour {
			t.Errorf("%q: %+v, %v", empty, cfg, err)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for name, x := range map[string]struct{ yaml, want string }{
		"unknown key":         {"listn: 1.2.3.4:1", "c.yaml:1:1: listn: unknown key; known are advertise,"},
		"key twice":           {"data: /a\ndata: /b", "c.yaml:2:1: data: is there twice"},
		"a list":              {"- a", "must be a mapping"},
		"two documents":       {"data: /a\n---\ndata: /b", "one document"},
		"no YAML":             {"data: [", "c.yaml: line 1"},
		"listen to a name":    {"listen: localhost:1", `c.yaml:1:9: listen: "localhost:1" is not an address and a port`},
		"listen to a port":    {"listen: 7443", "is not an address and a port"},
		"advertise a text":    {"advertise: 10.0.0.1:1", "must be a list"},
		"advertise anything":  {"advertise: [0.0.0.0:7443]", "agents can connect to"},
		"relative data":       {"data: here", "not an absolute path"},
		"relative socket":     {"socket: here.sock", "not an absolute path"},
		"long socket":         {"socket: /" + strings.Repeat("x", 120), "107 bytes"},
		"metrics to nowhere":  {"metrics: here", "address:port or unix:PATH"},
		"metrics path":        {"metrics: unix:here", "not an absolute path"},
		"certificates long":   {"certificateTTL: 10000h", "is not between"},
		"certificates short":  {"certificateTTL: 1s", "is not between"},
		"certificates a word": {"certificateTTL: soon", "must be a duration"},
		"grace too long":      {"certificateGrace: 10000h", "c.yaml:1:19: certificateGrace: 10000h0m0s is not between 0s and 8760h0m0s"},
		"grace below nothing": {"certificateGrace: -1h", "is not between"},
		"grace a word":        {"certificateGrace: always", "must be a duration, such as 720h"},
		"grace of nothing":    {"certificateGrace:", "must be a duration"},
		"log level":           {"logLevel: loud", "debug, info, warn or error"},
		"nothing":             {"data:", "must be a text"},
		"every problem":       {"data: here\nsocket: there", `socket: "there"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := controller.ParseConfig("c.yaml", []byte(x.yaml))
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("error %v, want one that says %q", err, x.want)
			}
			if err != nil && !strings.Contains(err.Error(), "c.yaml") {
				t.Errorf("error %v does not name the file", err)
			}
		})
	}
}
