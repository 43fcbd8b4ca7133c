package apply

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/wire"
)

// The policy on disk is a magic line, the SHA-256 of the rest, and the policy as the protocol encodes it.
const (
	stateFile     = "policy.state"
	nextFile      = "policy.next" // written ahead; see disk
	corruptSuffix = ".corrupt"
	stateMagic    = "bulkhead policy 1\n"
	anyMagic      = "bulkhead policy "
)

var (
	errNoState      = errors.New("no policy on disk")
	errOtherVersion = errors.New("another version of the agent wrote it, and this one does not know all that it holds")
)

func encode(p *hostpolicy.Policy) ([]byte, error) {
	body, err := proto.Marshal(wire.PolicyToProto(p))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	data := make([]byte, 0, len(stateMagic)+len(sum)+len(body))
	data = append(data, stateMagic...)
	data = append(data, sum[:]...)
	return append(data, body...), nil
}

// load returns the policy in the file, or errNoState. What cannot be used is moved aside, where it can be looked at.
func load(dir, file string) (*hostpolicy.Policy, error) {
	path := filepath.Join(dir, file)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoState
	}
	if err != nil {
		return nil, err
	}
	p, err := decode(data)
	if err == nil {
		return p, nil
	}
	aside := path + corruptSuffix
	if moveErr := os.Rename(path, aside); moveErr != nil {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(err, moveErr))
	}
	return nil, fmt.Errorf("%s: %w (moved to %s)", path, err, aside)
}

func decode(data []byte) (*hostpolicy.Policy, error) {
	rest, ok := bytes.CutPrefix(data, []byte(stateMagic))
	if !ok && bytes.HasPrefix(data, []byte(anyMagic)) {
		return nil, errOtherVersion
	}
	if !ok || len(rest) < sha256.Size {
		return nil, errors.New("it is not a policy, or it was cut short")
	}
	sum, body := rest[:sha256.Size], rest[sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, errors.New("its checksum is wrong")
	}
	var m pb.HostPolicy
	if err := proto.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	p, err := wire.PolicyFromProto(&m)
	if err == nil && !proto.Equal(wire.PolicyToProto(p), &m) { // what is left out could be what denies
		return nil, errOtherVersion
	}
	return p, err
}
