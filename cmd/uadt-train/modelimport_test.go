package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/uadt-train/uadt-train/internal/internvl"
)

// What an import writes is tested beside internal/internvl, and against vLLM and
// transformers in tests/python/test_model_import.py.

func TestImportRefuses(t *testing.T) {
	l := lab(t)
	parent := t.TempDir()
	target := filepath.Join(parent, "target")
	invoke(t, "model", "import", l.path("model"), target).expect(t, exitUsage, `model_type "qwen2_5_vl", want internvl_chat`)
	invoke(t, "model", "import", filepath.Join(parent, "nothing"), target).expect(t, exitFailed, "nothing", "no such file")
	invoke(t, "model", "import", l.path("model")).expect(t, exitUsage, "2 arg(s)")
	invoke(t, "model", "import", l.path("model"), parent).expect(t, exitUsage, parent+": exists already")
	if _, err := os.Stat(target); !os.IsNotExist(err) {
		t.Errorf("%s: %v", target, err)
	}
}

func TestImportSaysWhatItDid(t *testing.T) {
	var out bytes.Buffer
	m := &Main{Stdout: &out}
	r := internvl.Result{Digest: "abc", Tensors: 73, Fused: 4, Bytes: 1000, Vocab: 325, TileSide: 56, TileToken: 4, MaxTiles: 12, MadeTokenizer: true}
	if err := m.printImported("there", r); err != nil {
		t.Fatal(err)
	}
	const want = `73 tensors, 1000 bytes, 4 fused ones cut into three
vocabulary of 325; tokenizer.json made from vocab.json and merges.txt
tiles of 56x56 pixels and 4 tokens, at most 12 an image and a thumbnail
there
weights sha256 abc
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestPercent(t *testing.T) {
	for terminal, want := range map[bool]string{
		false: "read 12%\nread 50%\nread 100%\n",
		true:  "read 5%\rread 12%\rread 13%\rread 50%\rread 100%\n",
	} {
		var out bytes.Buffer
		m := &Main{Stderr: &out, Terminal: terminal}
		progress := m.percent("read")
		for _, done := range []int64{1, 10, 11, 25, 26, 27, 100, 101, 200} {
			progress(done, 200)
		}
		if out.String() != want {
			t.Errorf("terminal %v: %q, want %q", terminal, out.String(), want)
		}
	}
}
