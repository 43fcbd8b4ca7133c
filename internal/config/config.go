// Package config reads the configuration of a program: one YAML file, in which a key that is not known is an error, and
// every problem is reported with its place.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Keys says how the value of each key is read into a configuration C. The error says what the value must be.
type Keys[C any] map[string]func(*C, *yaml.Node) error

// Text is a key whose value is any text.
func Text[C any](field func(*C) *string) func(*C, *yaml.Node) error {
	return func(c *C, n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			return errors.New("must be a text")
		}
		*field(c) = n.Value
		return nil
	}
}

// Duration is a key whose value is a duration; the example is one.
func Duration[C any](field func(*C) *time.Duration, example string) func(*C, *yaml.Node) error {
	return func(c *C, n *yaml.Node) error {
		if n.Decode(field(c)) != nil {
			return fmt.Errorf("must be a duration, such as %s", example)
		}
		return nil
	}
}

// Level is a key whose value is a level of logging.
func Level[C any](field func(*C) *slog.Level) func(*C, *yaml.Node) error {
	return func(c *C, n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || field(c).UnmarshalText([]byte(n.Value)) != nil {
			return errors.New("must be debug, info, warn or error")
		}
		return nil
	}
}

// Problems collects what is wrong with values that could be read.
type Problems struct{ list []problem }

// Add notes that the value of the key cannot be used.
func (p *Problems) Add(key, format string, args ...any) {
	p.list = append(p.list, problem{key: key, text: fmt.Sprintf(format, args...)})
}

// Any reports whether there is a problem.
func (p *Problems) Any() bool { return len(p.list) > 0 }

// problem is what is wrong with a key.
type problem struct {
	key  string
	at   *yaml.Node // nil: where the key's value is
	text string
}

func (p problem) in(name string, places map[string]*yaml.Node) error {
	at := p.at
	if at == nil {
		at = places[p.key]
	}
	if at == nil {
		return fmt.Errorf("%s: %s: %s", name, p.key, p.text)
	}
	return fmt.Errorf("%s:%d:%d: %s: %s", name, at.Line, at.Column, p.key, p.text)
}

// Parse reads data over what c holds, the defaults, and then calls check, unless something could not be read. The error
// holds every problem, one a line, each with its place; name is what the places are in.
func Parse[C any](name string, data []byte, c *C, keys Keys[C], check func(*C, *Problems)) error {
	var root yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(&yaml.Node{}); err == nil {
		return fmt.Errorf("%s: there must be one document, not several", name)
	}
	places := map[string]*yaml.Node{}
	problems := read(&root, c, keys, places)
	if len(problems) == 0 {
		var p Problems
		check(c, &p)
		problems = p.list
	}
	lines := make([]error, len(problems))
	for i, p := range problems {
		lines[i] = p.in(name, places)
	}
	return errors.Join(lines...)
}

func read[C any](root *yaml.Node, c *C, keys Keys[C], places map[string]*yaml.Node) (problems []problem) {
	if root.Kind == 0 {
		return nil // an empty file
	}
	top := root.Content[0]
	if top.Kind != yaml.MappingNode {
		return []problem{{key: "file", at: top, text: "must be a mapping of keys to values"}}
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		set := keys[key.Value]
		switch {
		case set == nil:
			known := strings.Join(slices.Sorted(maps.Keys(keys)), ", ")
			problems = append(problems, problem{key.Value, key, "unknown key; known are " + known})
			continue
		case places[key.Value] != nil:
			problems = append(problems, problem{key.Value, key, "is there twice"})
			continue
		}
		places[key.Value] = value
		if err := set(c, value); err != nil {
			problems = append(problems, problem{key.Value, value, err.Error()})
		}
	}
	return problems
}
