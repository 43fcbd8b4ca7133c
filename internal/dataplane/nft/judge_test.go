package nft_test

import (
	"testing"
	"time"

	"bulkhead/internal/dataplane/dataplanetest"
)

// TestJudgesLikeTheReference has real packets judged by random policies.
func TestJudgesLikeTheReference(t *testing.T) {
	during := 20 * time.Second
	if testing.Short() {
		during = 3 * time.Second
	}
	dataplanetest.RunReference(t, open, during)
}
