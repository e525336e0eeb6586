package dataset

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// bigFile writes n small records about one image.
func bigFile(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	write(b, dir, "pic.png", string(pngOf(b, 1)))
	path := filepath.Join(dir, "big.json")
	file, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(file)
	for i := range n {
		mark := ",\n"
		if i == 0 {
			mark = "["
		}
		if _, err := fmt.Fprintf(w, `%s{"image":["pic.png"],"conversations":[{"from":"human","value":"Question %d? A. one B. two"},{"from":"gpt","value":"B"}]}`, mark, i); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := w.WriteString("]"); err != nil {
		b.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := file.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

// BenchmarkOpen opens files of 1,000 to 100,000 records, first without and
// then with an index file, and reports the time and memory of a record.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		path := bigFile(b, n)
		for name, cached := range map[string]bool{"first": false, "again": true} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				if cached {
					b.StopTimer()
					open(b, Options{Path: path})
					b.StartTimer()
				}
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				var last *Set
				for range b.N {
					last = open(b, Options{Path: path, NoIndexFile: !cached})
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/record")
				runtime.GC()
				runtime.ReadMemStats(&after)
				runtime.KeepAlive(last)
				b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/float64(b.N)/float64(n), "B/record")
			})
		}
	}
}

// BenchmarkNext draws questions in shuffled order from an opened file.
func BenchmarkNext(b *testing.B) {
	s := open(b, Options{Path: bigFile(b, 10_000)})
	src, err := NewSource(s, SourceOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		if _, _, err := src.Next(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
