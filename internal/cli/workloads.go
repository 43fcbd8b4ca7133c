package cli

import (
	"bytes"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// workloadView is one workload as `get workloads` prints it in JSON and YAML and as --workloads reads it back.
type workloadView struct {
	Name       string          `json:"name" yaml:"name"`
	Labels     model.Labels    `json:"labels" yaml:"labels"`
	Addresses  []string        `json:"addresses" yaml:"addresses"`
	Managed    bool            `json:"managed" yaml:"managed"`
	Host       string          `json:"host,omitempty" yaml:"host"`
	Unit       string          `json:"unit,omitempty" yaml:"unit"`
	Segments   []string        `json:"segments" yaml:"segments"`
	Mode       string          `json:"mode" yaml:"mode"` // the strictest of its segments; none without
	Quarantine string          `json:"quarantine,omitempty" yaml:"quarantine"`
	InUse      []inUseView     `json:"in_use,omitempty" yaml:"in_use"`
	Listening  []listeningView `json:"listening,omitempty" yaml:"listening"`
	Declared   *bool           `json:"declared,omitempty" yaml:"declared"`   // a document names it; from the controller only
	Connected  *bool           `json:"connected,omitempty" yaml:"connected"` // its host's agent is connected; likewise
}

// inUseView is an edge that quarantine level restrict keeps open.
type inUseView struct {
	Direction string `json:"direction" yaml:"direction"`
	Peer      string `json:"peer" yaml:"peer"`
	Ports     string `json:"ports" yaml:"ports"`
}

type listeningView struct {
	Address string `json:"address,omitempty" yaml:"address"` // absent: every address
	Port    string `json:"port" yaml:"port"`
	Process string `json:"process,omitempty" yaml:"process"`
}

// viewWorkload returns what there is to show of a workload.
func (s *scene) viewWorkload(inst *model.Instance) workloadView {
	v := workloadView{
		Name: inst.Name, Labels: inst.Labels.With(nil), Managed: inst.Managed, Host: inst.Host, Unit: inst.Unit, Mode: "none",
		Addresses: make([]string, len(inst.Addresses)), Segments: []string{},
	}
	for i, a := range inst.Addresses {
		v.Addresses[i] = a.String()
	}
	mode := model.ModeObserve
	for i := range s.docs.Segments {
		if g := &s.docs.Segments[i]; g.Selector.Matches(inst.Labels) {
			v.Segments = append(v.Segments, g.Name)
			mode = min(mode, g.Mode)
			v.Mode = mode.String()
		}
	}
	if inst.Quarantine.Level != model.QuarantineNone {
		v.Quarantine = inst.Quarantine.Level.String()
	}
	for _, u := range inst.Quarantine.InUse {
		v.InUse = append(v.InUse, inUseView{u.Direction.String(), u.Peer, u.Ports.String()})
	}
	for _, l := range inst.Listening {
		port := model.PortRange{Proto: l.Proto, Lo: l.Port, Hi: l.Port}
		at := listeningView{Port: port.String(), Process: l.Process}
		if l.Addr.IsValid() && !l.Addr.IsUnspecified() {
			at.Address = l.Addr.String()
		}
		v.Listening = append(v.Listening, at)
	}
	if p, ok := s.online[inst.Name]; ok {
		v.Declared, v.Connected = &p.declared, &p.connected
	}
	return v
}

// readWorkloads reads --workloads: documents of kind Workload, or a list as `get workloads` prints it.
func readWorkloads(cmd *cobra.Command, path string) ([]model.Workload, []inventory.Lease, error) {
	files, err := readFiles(cmd, []string{path})
	if err != nil {
		return nil, nil, err
	}
	if len(files) == 1 && isList(files[0].Data) {
		return parseWorkloadViews(path, files[0].Data)
	}
	docs, err := parse(cmd, files, "no workload was read from "+path)
	if err != nil {
		return nil, nil, err
	}
	if only := (model.Documents{Workloads: docs.Workloads}); !reflect.DeepEqual(*docs, only) {
		return nil, nil, usagef("%s holds more than workloads; give the other documents with -f", path)
	}
	return docs.Workloads, nil, nil
}

// isList reports whether YAML or JSON holds a list, and so not documents.
func isList(data []byte) bool {
	data = bytes.TrimLeft(data, " \t\r\n")
	return bytes.HasPrefix(data, []byte("[")) || bytes.HasPrefix(data, []byte("- "))
}

func parseWorkloadViews(path string, data []byte) ([]model.Workload, []inventory.Lease, error) {
	var views []workloadView
	d := yaml.NewDecoder(bytes.NewReader(data)) // JSON is YAML
	d.KnownFields(true)
	if err := d.Decode(&views); err != nil {
		return nil, nil, usagef("%s is not what get workloads -o json prints: %w", path, err)
	}
	var (
		workloads []model.Workload
		leases    []inventory.Lease
	)
	for i := range views {
		w, lease, err := views[i].workload()
		if err != nil {
			return nil, nil, usagef("%s: workload %q: %w", path, views[i].Name, err)
		}
		workloads = append(workloads, w)
		if lease.Level != model.QuarantineNone {
			leases = append(leases, lease)
		}
	}
	return workloads, leases, nil
}

// workload returns the document that declares what the view shows, and the quarantine it is in.
func (v *workloadView) workload() (model.Workload, inventory.Lease, error) {
	w := model.Workload{Meta: model.Meta{Name: v.Name, Labels: model.Labels{}}, Managed: v.Managed}
	lease := inventory.Lease{Workload: v.Name}
	if v.Name == "" {
		return w, lease, usagef("it has no name")
	}
	for k, value := range v.Labels {
		if !strings.HasPrefix(k, model.SystemLabelPrefix) { // those follow from what they stand for
			w.Labels[k] = value
		}
	}
	for _, text := range v.Addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return w, lease, err
		}
		w.Addresses = append(w.Addresses, a)
	}
	if v.Unit != "" {
		w.Unit = &model.Unit{Host: v.Host, Name: v.Unit}
	}
	if v.Quarantine == "" {
		return w, lease, nil
	}
	var err error
	if lease.Level, err = parseLevel(v.Quarantine); err != nil {
		return w, lease, err
	}
	for _, u := range v.InUse {
		ports, err := model.ParsePortRange(u.Ports)
		if err != nil {
			return w, lease, err
		}
		use := model.InUse{Peer: u.Peer, Ports: ports}
		switch u.Direction {
		case model.Egress.String():
			use.Direction = model.Egress
		case model.Ingress.String():
		default:
			return w, lease, usagef("direction %q: use ingress or egress", u.Direction)
		}
		lease.InUse = append(lease.InUse, use)
	}
	return w, lease, nil
}

// withWorkloads returns docs with further workloads. What docs says of a workload of the same name wins, but the
// labels and addresses that it does not mention stay.
func withWorkloads(docs *model.Documents, more []model.Workload) *model.Documents {
	over := make([]model.Workload, 0, len(more))
	for _, w := range more {
		i := slices.IndexFunc(docs.Workloads, func(d model.Workload) bool { return d.Name == w.Name })
		if i < 0 {
			over = append(over, w)
			continue
		}
		d := docs.Workloads[i]
		d.Labels = w.Labels.With(d.Labels)
		for _, a := range w.Addresses {
			if !slices.Contains(d.Addresses, a) {
				d.Addresses = append(slices.Clip(d.Addresses), a)
			}
		}
		if d.Unit == nil {
			d.Unit = w.Unit
		}
		over = append(over, d)
	}
	return policy.Merge(docs, &model.Documents{Workloads: over})
}
