package tokenizer_test

import (
	"strings"
	"testing"
)

// BenchmarkEncode turns a corpus into ids.
func BenchmarkEncode(b *testing.B) {
	tok := learn(b, 512)
	text := strings.Join(corpus, "\n")
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		tok.Encode(text)
	}
}

// BenchmarkDecode turns ids into text piece by piece.
func BenchmarkDecode(b *testing.B) {
	tok := learn(b, 512)
	ids := tok.Encode(strings.Join(corpus, "\n"))
	b.ReportAllocs()
	for b.Loop() {
		d := tok.NewDecoder(true)
		for _, v := range ids {
			d.Next(v)
		}
	}
	b.ReportMetric(float64(len(ids))*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
