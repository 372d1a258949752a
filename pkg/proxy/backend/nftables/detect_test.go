package nftables

import (
	"bytes"
	"errors"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
)

// TestDetectWithoutNft: a host without the program is told so and no more.
func TestDetectWithoutNft(t *testing.T) {
	var log bytes.Buffer
	err := Detect(t.Context(), Options{Nft: []string{"nft-is-not-here"}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if !errors.Is(err, exec.ErrNotFound) || strings.Contains(err.Error(), "frontends") {
		t.Errorf("error %v: want that there is no nft", err)
	}
	if log.Len() > 0 {
		t.Errorf("log of a question:\n%s", log.String())
	}
}
