package ebpf

import (
	"fmt"
	"testing"
	"time"

	"bulkhead/internal/dataplane"
)

func TestTmp(t *testing.T) {
	start := time.Now()
	d, _ := openForTest(t, nil)
	fmt.Println("open", time.Since(start))
	for v := range 4 {
		pol := bigPolicy(v, 2000)
		start := time.Now()
		tr, err := d.plan(&dataplane.State{Policy: pol})
		fmt.Println("plan", time.Since(start), err)
		start = time.Now()
		d.write(tr)
		fmt.Println("write", time.Since(start))
		start = time.Now()
		d.switchTo(tr)
		fmt.Println("switch", time.Since(start))
		start = time.Now()
		d.sweep()
		fmt.Println("sweep", time.Since(start))
		start = time.Now()
		d.finish(tr)
		fmt.Println("finish", time.Since(start))
	}
}
