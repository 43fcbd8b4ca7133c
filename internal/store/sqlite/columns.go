package sqlite

import (
	"encoding/json"
	"fmt"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
)

// millis writes and reads a time as milliseconds; the zero time is 0.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func toJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// labels reads a JSON object; an empty one gives nil.
func labels(text string) (model.Labels, error) {
	var l model.Labels
	if err := fromJSON(text, &l); err != nil || len(l) == 0 {
		return nil, err
	}
	return l, nil
}

func fromJSON(text string, into any) error {
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("%w: %w", store.ErrCorrupt, err)
	}
	return nil
}

// inUse is model.InUse with the spelling that stays the same when the model changes.
type inUse struct {
	Egress bool   `json:"egress,omitempty"`
	Peer   string `json:"peer"`
	Ports  string `json:"ports"`
}

func inUseToJSON(list []model.InUse) (string, error) {
	out := make([]inUse, len(list))
	for i, u := range list {
		out[i] = inUse{Egress: u.Direction == model.Egress, Peer: u.Peer, Ports: u.Ports.String()}
	}
	return toJSON(out)
}

func inUseFromJSON(text string) ([]model.InUse, error) {
	var list []inUse
	if err := fromJSON(text, &list); err != nil || len(list) == 0 {
		return nil, err
	}
	out := make([]model.InUse, len(list))
	for i, u := range list {
		ports, err := model.ParsePortRange(u.Ports)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", store.ErrCorrupt, err)
		}
		out[i] = model.InUse{Peer: u.Peer, Ports: ports}
		if u.Egress {
			out[i].Direction = model.Egress
		}
	}
	return out, nil
}
