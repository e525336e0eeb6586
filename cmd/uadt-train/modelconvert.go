package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/safetensors"
)

func (m *Main) modelConvert() *cobra.Command {
	var dtype string
	cmd := &cobra.Command{
		Use: "convert SOURCE TARGET", Short: "write a model directory with weights of another element type", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			if dtype != string(safetensors.F32) && dtype != string(safetensors.BF16) {
				return usagef("model convert: --dtype %s is neither F32 nor BF16", dtype)
			}
			if _, err := os.Stat(args[1]); err == nil {
				return usagef("model convert: %s exists", args[1])
			}
			digest, err := convert(args[0], args[1], safetensors.DType(dtype))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(m.Stdout, "%s\nweights sha256 %s\n", args[1], digest)
			return err
		},
	}
	cmd.Flags().StringVar(&dtype, "dtype", "BF16", "F32 or BF16")
	return cmd
}

func convert(source, target string, dtype safetensors.DType) (digest string, err error) {
	model, err := checkpoint.Open(source)
	if err != nil {
		return "", err
	}
	defer model.Close() //nolint:errcheck // read-only
	files, err := model.SideFiles()
	if err != nil {
		return "", err
	}
	tensors := map[string]safetensors.Tensor{}
	for _, name := range model.Names() {
		values, err := model.Float32(name)
		if err != nil {
			return "", err
		}
		_, shape, _ := model.Info(name)
		if tensors[name], err = checkpoint.FromFloat32(dtype, values, shape...); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	return checkpoint.Write(target, checkpoint.Contents{Files: files, Tensors: tensors})
}
