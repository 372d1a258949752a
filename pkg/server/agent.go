package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// agent serves the agent's own paths below api.Prefix.
func (s *Server) agent(w http.ResponseWriter, r *http.Request, path string) error {
	switch path {
	case api.PathPull, api.PathReload:
		if r.Method != http.MethodPost {
			return notAllowed("", r.Method)
		}
	default:
		if err := onlyGet(r); err != nil {
			return err
		}
	}
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	var v any
	switch path {
	case api.PathSources:
		v = api.SourceList{TypeMeta: api.TypeMeta("SourceList"), Items: orEmpty(s.o.Node.Sources())}
	case api.PathInfo:
		v = api.InfoList{TypeMeta: api.TypeMeta("InfoList"), Items: []api.Info{s.o.Node.Info()}}
	case api.PathConfig:
		v = s.o.Node.Config()
	case api.PathContainers:
		items, err := s.o.Node.Containers(r.Context())
		if err != nil {
			return err
		}
		v = api.ContainerList{TypeMeta: api.TypeMeta("ContainerList"), Items: orEmpty(items)}
	case api.PathVolumes:
		items, err := s.o.Node.Volumes(r.Context())
		if err != nil {
			return err
		}
		v = api.VolumeList{TypeMeta: api.TypeMeta("VolumeList"), Items: orEmpty(items)}
	case api.PathImages:
		items, pulls, err := s.o.Images.Images(r.Context())
		if err != nil {
			return err
		}
		v = api.ImageList{TypeMeta: api.TypeMeta("ImageList"), Items: orEmpty(items), Pulls: pulls}
	case api.PathReload:
		if err := s.o.Node.Reload(r.Context()); err != nil {
			return err
		}
		v = success()
	case api.PathPull:
		return s.pull(w, r)
	default:
		return notServed()
	}
	write(w, f, http.StatusOK, v)
	return nil
}

func orEmpty[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// pull fetches an image and streams its progress. The request ends the pull
// when its client goes away.
func (s *Server) pull(w http.ResponseWriter, r *http.Request) error {
	var req api.PullRequest
	if err := s.decodeBody(w, r, &req); err != nil {
		return err
	}
	if strings.TrimSpace(req.Image) == "" {
		return apierrors.NewBadRequest(`the body must name an image: {"image": "docker.io/library/nginx:latest"}`)
	}
	rc := http.NewResponseController(w)
	begun, done := false, false
	send := func(p api.PullProgress) {
		if done {
			return
		}
		if !begun {
			begun = true
			w.Header().Set("Content-Type", mediaJSON)
			w.Header().Set("Cache-Control", "no-cache, private")
		}
		b, err := json.Marshal(p)
		if err != nil {
			return
		}
		done = p.Complete || p.Error != ""
		_ = rc.SetWriteDeadline(s.o.Now().Add(streamWriteTimeout))
		if _, err := w.Write(append(b, '\n')); err == nil {
			_ = rc.Flush() // a client that is gone ends the request's context
		}
	}
	err := s.o.Images.Pull(r.Context(), req.Image, send)
	switch {
	case err == nil && !done:
		send(api.PullProgress{Image: req.Image, Complete: true})
	case err == nil, r.Context().Err() != nil && begun:
	case !begun:
		return fmt.Errorf("pulling %s: %w", req.Image, err)
	default:
		send(api.PullProgress{Image: req.Image, Error: err.Error()})
	}
	return nil
}
