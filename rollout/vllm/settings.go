package vllm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// Settings is what a server tells of how it was started, on a development route
// that not every server has.
type Settings struct {
	LogprobsMode string // processed_logprobs: after temperature and bias; raw_logprobs: before
	MaxLogprobs  int    // most top log-probabilities of a token
	Images       int    // most images of a prompt
	Broadcast    bool   // takes weights by broadcast
	Adapters     bool   // takes adapters
	AdapterRank  int    // highest rank of one; 0 without Adapters
}

// settings asks how a server was started; nil when it does not say.
func (c *client) settings(ctx context.Context) (*Settings, error) {
	data, err := c.do(ctx, http.MethodGet, "/server_info?config_format=json", nil, probeLimit)
	var status *StatusError
	if errors.As(err, &status) && status.Status == http.StatusNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := parseSettings(data)
	if err != nil {
		return nil, &GarbageError{c.id, err}
	}
	return s, nil
}

// defaultImages is vLLM's limit for a modality that its options do not name.
const defaultImages = 999

// parseSettings reads the answer of /server_info. Keys that it does not know
// are passed over: there are some hundred, and they change with each release.
func parseSettings(data []byte) (*Settings, error) {
	var answer struct {
		Config struct {
			Model *struct {
				Mode       string `json:"logprobs_mode"`
				Max        int    `json:"max_logprobs"`
				Multimodal struct {
					Limit map[string]struct {
						Count *int `json:"count"`
					} `json:"limit_per_prompt"`
				} `json:"multimodal_config"`
			} `json:"model_config"`
			Transfer *struct{} `json:"weight_transfer_config"`
			LoRA     *struct {
				Rank int `json:"max_lora_rank"`
			} `json:"lora_config"`
		} `json:"vllm_config"`
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	if answer.Config.Model == nil {
		return nil, fmt.Errorf("no vllm_config.model_config in %.100q", data)
	}
	model := answer.Config.Model
	s := &Settings{LogprobsMode: model.Mode, MaxLogprobs: model.Max, Images: defaultImages, Broadcast: answer.Config.Transfer != nil}
	if limit := model.Multimodal.Limit["image"].Count; limit != nil {
		s.Images = *limit
	}
	if answer.Config.LoRA != nil {
		s.Adapters, s.AdapterRank = true, answer.Config.LoRA.Rank
	}
	return s, nil
}
