package server

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/nodeagent/nodeagent/pkg/server/openapi"
	"github.com/nodeagent/nodeagent/pkg/server/usage"
)

// schemaLife is how long clients may keep a document that they name by its hash.
const schemaLife = 365 * 24 * time.Hour

// openAPI answers with the documents of OpenAPI v3; path is what follows
// openapi/v3.
func (s *Server) openAPI(w http.ResponseWriter, r *http.Request, path string) error {
	if err := onlyGet(r); err != nil {
		return err
	}
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	if path == "" {
		paths := map[string]any{}
		for _, gv := range s.described() {
			paths[root(gv)] = map[string]string{"serverRelativeURL": "/openapi/v3/" + root(gv) + "?hash=" + s.schemaHash(gv)}
		}
		write(w, format{media: mediaJSON, pretty: f.pretty}, http.StatusOK, map[string]any{"paths": paths})
		return nil
	}
	for _, gv := range s.described() {
		if path == "/"+root(gv) {
			return s.schemas(w, r, gv)
		}
	}
	return notServed()
}

// described are the groups and versions with schemas: nobody explains readings.
func (s *Server) described() []string {
	return slices.DeleteFunc(append([]string{"v1"}, s.groupVersions()...), func(gv string) bool { return gv == usage.APIVersion })
}

// mediaOpenAPIv2 is what kubectl takes OpenAPI v2 as.
const mediaOpenAPIv2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"

// openAPIv2 answers with a document that describes nothing: all there is to know
// is in v3. kubectl asks for it about kinds that are not served, and says so only
// when it gets an answer.
func (s *Server) openAPIv2(w http.ResponseWriter, r *http.Request) error {
	if err := onlyGet(r); err != nil {
		return err
	}
	const version, title = "2.0", "nodeagent"
	if strings.Contains(r.Header.Get("Accept"), "proto-openapi.spec.v2") {
		field := func(b []byte, number protowire.Number, value string) []byte {
			return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), value)
		}
		doc := field(field(nil, 1, version), 2, string(field(field(nil, 1, title), 2, s.gitVersion())))
		w.Header().Set("Content-Type", mediaOpenAPIv2)
		_, _ = w.Write(doc) // a client that is gone needs no answer
		return nil
	}
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, map[string]any{
		"swagger": version, "info": map[string]string{"title": title, "version": s.gitVersion()}, "paths": map[string]any{},
	})
	return nil
}

// schemaHash changes when the document of a group does.
func (s *Server) schemaHash(gv string) string {
	return openapi.Hash(gv) + "-" + strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '.' {
			return c
		}
		return '-'
	}, s.gitVersion())
}

// schemas sends the document of a group as it is unpacked, and keeps none of it.
func (s *Server) schemas(w http.ResponseWriter, r *http.Request, gv string) error {
	h, hash := w.Header(), s.schemaHash(gv)
	tag := `"` + hash + `"`
	h.Set("Etag", tag)
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "no-cache, private")
	if r.URL.Query().Get("hash") == hash {
		h.Set("Cache-Control", "public, immutable")
		h.Set("Expires", s.o.Now().Add(schemaLife).UTC().Format(http.TimeFormat))
	}
	if strings.Contains(r.Header.Get("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	var kinds []openapi.Kind
	for _, v := range s.views {
		if v.APIVersion != gv {
			continue
		}
		path := "/" + root(gv) + "/"
		if v.Namespaced {
			path += "namespaces/{namespace}/"
		}
		path += v.Resource
		kinds = append(kinds, openapi.Kind{Group: v.group(), Version: v.version(), Name: v.Name, Path: path, Item: path + "/{name}", Writable: v.writer != nil})
	}
	h.Set("Content-Type", mediaJSON)
	if r.Method == http.MethodHead {
		return nil
	}
	return openapi.Write(w, gv, s.gitVersion(), kinds)
}
