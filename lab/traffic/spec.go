package traffic

import (
	"encoding/json"
	"fmt"
	"os"
)

// WriteSpec writes what a program of the lab is to do to a file that only its owner reads: it may hold a token.
func WriteSpec[S any](path string, s *S) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// ReadSpec reads what WriteSpec wrote.
func ReadSpec[S any](path string) (*S, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := new(S)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
