//go:build tools

// Package tools pins the programs that `make verify` and `make deb` build.
// They are a module of their own, so that none of their dependencies enters
// the product's.
package tools

import (
	_ "github.com/goreleaser/nfpm/v2/cmd/nfpm"
	_ "golang.org/x/vuln/cmd/govulncheck"
	_ "honnef.co/go/tools/cmd/staticcheck"
)
