// Package openapi is the published schema of the kinds that are served, as
// OpenAPI v3: what kubectl explains and checks by, and what server-side apply
// merges by.
//
// The schemas are compressed in the binary, a file for each group and version,
// and unpacked while they are sent; nothing of them stays in memory. They are
// those of Kubernetes (test/kubernetes/openapi makes the files).
package openapi

import (
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

//go:embed schemas/*.json.gz
var files embed.FS

// FileName is the name of a group's and version's file: "v1.json.gz",
// "discovery.k8s.io_v1.json.gz".
func FileName(apiVersion string) string {
	return strings.ReplaceAll(apiVersion, "/", "_") + ".json.gz"
}

// Kind is a kind that is served.
type Kind struct {
	Group, Version, Name string
	// Path is that of a collection, Item that of an object.
	Path, Item string
	// Writable says that clients may change objects of the kind.
	Writable bool
}

// packed is a group's file, or nil.
func packed(apiVersion string) []byte {
	b, err := files.ReadFile("schemas/" + FileName(apiVersion))
	if err != nil {
		return nil
	}
	return b
}

// Hash changes when the schemas of a group do.
func Hash(apiVersion string) string {
	b := packed(apiVersion)
	if len(b) < 8 {
		return "none"
	}
	// A gzip file ends with a checksum and the length of what is in it.
	return hex.EncodeToString(b[len(b)-8:])
}

// Schemas is the JSON object of a group's schemas by their names. A group
// without schemas is fs.ErrNotExist.
func Schemas(apiVersion string) (io.ReadCloser, error) {
	b := packed(apiVersion)
	if b == nil {
		return nil, fmt.Errorf("schemas of %s: %w", apiVersion, fs.ErrNotExist)
	}
	return gzip.NewReader(bytes.NewReader(b))
}

// Write writes the document of a group and version.
func Write(w io.Writer, apiVersion, serverVersion string, kinds []Kind) (err error) {
	schemas, err := Schemas(apiVersion)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, schemas.Close()) }()
	head, err := json.Marshal(map[string]any{
		"openapi": "3.0.0", "info": map[string]string{"title": "nodeagent", "version": serverVersion}, "paths": paths(kinds),
	})
	if err != nil {
		return err
	}
	// The schemas are the last member of the document, copied as they are.
	if _, err := fmt.Fprintf(w, `%s,"components":{"schemas":`, bytes.TrimSuffix(head, []byte("}"))); err != nil {
		return err
	}
	if _, err := io.Copy(w, schemas); err != nil {
		return err
	}
	_, err = io.WriteString(w, "}}\n")
	return err
}

// paths are what clients look at: which operations there are, and that the server
// validates fields and makes dry runs.
func paths(kinds []Kind) map[string]any {
	query := func(name string) map[string]any {
		return map[string]any{"name": name, "in": "query", "schema": map[string]any{"type": "string", "uniqueItems": true}}
	}
	out := map[string]any{}
	for _, k := range kinds {
		operation := func(action string, names ...string) map[string]any {
			params := []any{}
			for _, n := range names {
				params = append(params, query(n))
			}
			return map[string]any{
				"parameters": params, "x-kubernetes-action": action,
				"x-kubernetes-group-version-kind": map[string]string{"group": k.Group, "version": k.Version, "kind": k.Name},
				"responses":                       map[string]any{"200": map[string]any{"description": "OK"}},
			}
		}
		all := map[string]any{"get": operation("list", "labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "watch")}
		one := map[string]any{"get": operation("get")}
		if k.Writable {
			all["post"] = operation("post", "dryRun", "fieldManager", "fieldValidation")
			one["put"] = operation("put", "dryRun", "fieldManager", "fieldValidation")
			one["patch"] = operation("patch", "dryRun", "fieldManager", "fieldValidation", "force")
			one["delete"] = operation("delete", "dryRun", "gracePeriodSeconds")
		}
		out[k.Path], out[k.Item] = all, one
	}
	return out
}
