package bus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/uadt-train/uadt-train/internal/bus"
)

// BenchmarkGroups prints one JSON line for each transport:
//
//	go test -run '^$' -bench Groups -benchtime 1x ./internal/bus
func BenchmarkGroups(b *testing.B) {
	for _, tcp := range []bool{false, true} {
		name := "process"
		if tcp {
			name = "tcp"
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				result, err := bus.Bench(context.Background(), bus.BenchOptions{Dir: b.TempDir(), TCP: tcp})
				if err != nil {
					b.Fatal(err)
				}
				line, err := json.Marshal(result)
				if err != nil {
					b.Fatal(err)
				}
				fmt.Printf("%s\n", line)
				b.ReportMetric(result.GroupsPerS, "groups/s")
				b.ReportMetric(100*result.ShareOfBound, "%bound")
			}
		})
	}
}

func TestBenchMeasures(t *testing.T) {
	noLeaks(t)
	for _, tcp := range []bool{false, true} {
		result, err := bus.Bench(patient(t), bus.BenchOptions{Dir: t.TempDir(), Groups: 10, TCP: tcp})
		if err != nil {
			t.Fatal(err)
		}
		if result.MBPerS <= 0 || result.LoopbackMBPS <= 0 || result.AppendMBPS <= 0 {
			t.Fatalf("%+v", result)
		}
		if want := result.MBPerS / min(result.LoopbackMBPS, result.AppendMBPS); result.ShareOfBound != want {
			t.Fatalf("share %g, want %g", result.ShareOfBound, want)
		}
	}
}
