package remote

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

// Schemas of the messages, and the version of each.
const (
	SchemaCommand = "uadt.trainer-command"
	SchemaAnswer  = "uadt.trainer-answer"
	SchemaRank    = "uadt.trainer-rank/1"
	version       = 1
)

// command is the message of a frame to a rank.
type command struct {
	Version  int    `json:"version"`
	Instance string `json:"instance"` // the process that is meant; another passes it over
	Body     any    `json:"body"`
}

// answer is the message of a frame from a rank.
type answer struct {
	Version  int             `json:"version"`
	Instance string          `json:"instance"`
	Command  string          `json:"command"`
	Error    *failure        `json:"error"`
	Body     json.RawMessage `json:"body"`

	rank    int
	tensors map[string]safetensors.Tensor
}

// presence is what a rank says of itself.
type presence struct {
	Version     int    `json:"version"`
	Session     string `json:"session"`
	Rank        int    `json:"rank"`
	World       int    `json:"world"`
	Host        string `json:"host"`
	Instance    string `json:"instance"`
	Incarnation uint64 `json:"incarnation"`
	Step        int    `json:"step"`
	Busy        string `json:"busy"`
}

// encodeCommand renders a command.
func encodeCommand(c command, tensors map[string]safetensors.Tensor) (bus.Message, error) {
	text, err := json.Marshal(c)
	if err != nil {
		return bus.Message{}, fmt.Errorf("%s: %w", SchemaCommand, err)
	}
	metadata := map[string]string{"schema": SchemaCommand, "version": strconv.Itoa(version), "message": string(text)}
	data, err := safetensors.Encode(safetensors.File{Metadata: metadata, Tensors: tensors})
	if err != nil {
		return bus.Message{}, fmt.Errorf("%s: %w", SchemaCommand, err)
	}
	return bus.Message{Schema: SchemaCommand + "/" + strconv.Itoa(version), Data: data}, nil
}

// decodeAnswer reads an answer. A higher major version is refused, unknown
// keys of the message too; unknown tensors are ignored.
func decodeAnswer(data []byte) (answer, error) {
	file, err := safetensors.Decode(data)
	if err != nil {
		return answer{}, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	if schema, found := file.Metadata["schema"], file.Metadata["version"]; schema != SchemaAnswer || found != strconv.Itoa(version) {
		return answer{}, fmt.Errorf("%w: schema %q version %q, want %s version %d", ErrFrame, schema, found, SchemaAnswer, version)
	}
	a := answer{tensors: file.Tensors}
	if err := bus.DecodeStrict([]byte(file.Metadata["message"]), &a); err != nil {
		return answer{}, fmt.Errorf("%w: message: %w", ErrFrame, err)
	}
	if a.Version != version {
		return answer{}, fmt.Errorf("%w: message version %d, this program reads %d", ErrFrame, a.Version, version)
	}
	return a, nil
}

// decodePresence reads a heartbeat.
func decodePresence(m bus.Message) (presence, error) {
	var p presence
	if m.Schema != SchemaRank {
		return p, fmt.Errorf("%w: schema %q, want %s", ErrFrame, m.Schema, SchemaRank)
	}
	if err := bus.DecodeStrict(m.Data, &p); err != nil {
		return p, fmt.Errorf("%w: heartbeat: %w", ErrFrame, err)
	}
	if p.Version != version || p.Rank < 0 || p.World < 1 || p.World > maxRanks || p.Rank >= p.World || p.Instance == "" {
		return p, fmt.Errorf("%w: heartbeat of version %d, rank %d of %d, instance %q", ErrFrame, p.Version, p.Rank, p.World, p.Instance)
	}
	return p, nil
}

// body decodes the body of an answer.
func (a answer) body(into any) error {
	if err := bus.DecodeStrict(a.Body, into); err != nil {
		return fmt.Errorf("%w: answer of rank %d to %s: %w", ErrFrame, a.rank, a.Command, err)
	}
	return nil
}

// floats returns a tensor of n float32 values.
func (a answer) floats(name string, n int) ([]float32, error) {
	t, ok := a.tensors[name]
	if !ok {
		return nil, fmt.Errorf("%w: answer of rank %d to %s has no tensor %s", ErrFrame, a.rank, a.Command, name)
	}
	if t.DType != safetensors.F32 || len(t.Shape) != 1 || t.Shape[0] != n {
		return nil, fmt.Errorf("%w: tensor %s of rank %d is %s %v, want F32 [%d]", ErrFrame, name, a.rank, t.DType, t.Shape, n)
	}
	return t.Float32()
}

// ints returns a tensor of int32 values.
func (a answer) ints(name string) ([]int32, error) {
	t, ok := a.tensors[name]
	if !ok {
		return nil, fmt.Errorf("%w: answer of rank %d to %s has no tensor %s", ErrFrame, a.rank, a.Command, name)
	}
	if t.DType != safetensors.I32 || len(t.Shape) != 1 {
		return nil, fmt.Errorf("%w: tensor %s of rank %d is %s %v, want I32 of one axis", ErrFrame, name, a.rank, t.DType, t.Shape)
	}
	return t.Int32()
}
