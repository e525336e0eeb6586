package trainertest

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/uadt-train/uadt-train/trainer"
)

// size is the number of parameters of the scripted model.
const size = 8

// vector is one number a parameter.
type vector [size]float64

func (v *vector) norm() float64 {
	sum := 0.0
	for _, x := range v {
		sum += x * x
	}
	return math.Sqrt(sum)
}

func (v *vector) scale(by float64) {
	for i := range v {
		v[i] *= by
	}
}

// notFinite names the first element that is not finite, empty when all are.
func (v *vector) notFinite() string {
	for i, x := range v {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return fmt.Sprintf("parameter %d", i)
		}
	}
	return ""
}

// weights are model and optimizer.
type weights struct {
	Theta vector `json:"theta"`
	M     vector `json:"m"` // first moment
	V     vector `json:"v"` // second moment
	Count int    `json:"count"`
	Step  int    `json:"step"`
}

func initial() *weights {
	w := &weights{}
	for i := range w.Theta {
		w.Theta[i] = 0.1 * float64(i+1)
	}
	return w
}

// slot is the parameter that token has its log-probability from at place i.
func slot(token int32, i int) int { return (int(token) + i) % size }

// logprob is -log(1 + exp(-theta/temperature)), always below 0.
func (w *weights) logprob(token int32, i int, temperature float64) float64 {
	return -math.Log1p(math.Exp(-w.Theta[slot(token, i)] / temperature))
}

// slope is the derivative of logprob by its parameter at temperature 1.
func (w *weights) slope(token int32, i int) float64 {
	return 1 / (1 + math.Exp(w.Theta[slot(token, i)]))
}

// entropy is that of a coin with the probability of the token, plus a share
// that depends on the token, so that traces differ.
func (w *weights) entropy(token int32, i int) float64 {
	p := math.Exp(w.logprob(token, i, 1))
	return -p*math.Log(p) - (1-p)*math.Log1p(-p) + float64(token%16)/32
}

// adamw applies one update with decoupled weight decay.
func (w *weights) adamw(g *vector, o trainer.Optimizer, rate float64) {
	b1, b2, eps := or(o.Beta1, 0.9), or(o.Beta2, 0.999), or(o.Epsilon, 1e-8)
	w.Count++
	for i := range w.Theta {
		w.M[i] = b1*w.M[i] + (1-b1)*g[i]
		w.V[i] = b2*w.V[i] + (1-b2)*g[i]*g[i]
		m := w.M[i] / (1 - math.Pow(b1, float64(w.Count)))
		v := w.V[i] / (1 - math.Pow(b2, float64(w.Count)))
		w.Theta[i] -= rate * (m/(math.Sqrt(v)+eps) + o.WeightDecay*w.Theta[i])
	}
}

func or(value, fallback float64) float64 {
	if value == 0 {
		return fallback
	}
	return value
}

// digest is the SHA-256 over the parameters.
func (w *weights) digest() string {
	var buffer [8 * size]byte
	for i, x := range w.Theta {
		binary.LittleEndian.PutUint64(buffer[8*i:], math.Float64bits(x))
	}
	sum := sha256.Sum256(buffer[:])
	return hex.EncodeToString(sum[:])
}

const modelFile, optimizerFile = "model.json", "optimizer.json"

func (w *weights) writeModel(dir string) error { return writeJSON(dir, modelFile, w.Theta) }

func (w *weights) readModel(dir string) error { return readJSON(dir, modelFile, &w.Theta) }

func (w *weights) writeCheckpoint(dir string) error {
	if err := w.writeModel(filepath.Join(dir, "policy")); err != nil {
		return err
	}
	return writeJSON(dir, optimizerFile, w)
}

func (w *weights) readCheckpoint(dir string) error { return readJSON(dir, optimizerFile, w) }

func writeJSON(dir, name string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.WriteFile(filepath.Join(dir, name), data, 0o644)
}

func readJSON(dir, name string, value any) error {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

// InitialDigest is the digest of the weights that a stage without a model
// starts from.
func InitialDigest() string { return initial().digest() }
