package fake

import (
	"testing"
	"time"

	"bulkhead/internal/flowstore"
	"bulkhead/internal/flowstore/flowstoretest"
)

func TestConformance(t *testing.T) {
	flowstoretest.Run(t, func(_ *testing.T, retention time.Duration) flowstore.Store {
		return &Store{Retention: retention}
	})
}
