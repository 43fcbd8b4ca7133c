package wire

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

func TestJoinToken(t *testing.T) {
	want := JoinToken{ID: "k7", Secret: "s3cr3t", CA: sha256.Sum256([]byte("ca"))}
	for _, s := range []string{want.Text(), "  " + want.Text() + "\n", want.Text() + "="} {
		got, err := ParseJoinToken(s)
		if err != nil || got != want {
			t.Errorf("ParseJoinToken(%q) = %+v, %v", s, got, err)
		}
	}
	if s := fmt.Sprint(want); strings.Contains(s, want.Secret) {
		t.Errorf("the token prints its secret: %s", s)
	}
	text := want.Text()
	for _, s := range []string{"", "bh1", "bh2" + text[3:], text[:len(text)-4], "bh1..s." + text[len(text)-43:], text + ".x", text + "AAAA"} {
		_, err := ParseJoinToken(s)
		if err == nil {
			t.Errorf("ParseJoinToken(%q) took it", s)
		} else if strings.Contains(err.Error(), want.Secret) {
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
}
