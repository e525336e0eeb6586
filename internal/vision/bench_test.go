package vision_test

import (
	"testing"

	"github.com/uadt-train/uadt-train/internal/vision"
)

// BenchmarkPreprocess prepares the pictures of the quickstart and a camera's.
func BenchmarkPreprocess(b *testing.B) {
	for _, c := range []struct {
		name   string
		side   int
		format string
	}{{"png-84", 84, "png"}, {"jpeg-1411", 1411, "jpeg"}, {"png-1411", 1411, "png"}} {
		data := encoded(b, pattern(c.side, c.side), c.format)
		config := vision.DefaultConfig()
		config.MaxPixels = 16 * 28 * 28
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := vision.Preprocess(data, config); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
