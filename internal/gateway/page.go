package gateway

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"path"
)

// pageFiles is the status page: no build step, nothing from elsewhere.
//
//go:embed page
var pageFiles embed.FS

// asset is one file of the page.
type asset struct {
	path    string // on the server
	kind    string // media type
	content []byte
	etag    string
}

// pageAssets returns the files of the page, index.html as /.
func pageAssets() []asset {
	kinds := map[string]string{
		".html": "text/html; charset=utf-8",
		".css":  "text/css; charset=utf-8",
		".js":   "text/javascript; charset=utf-8",
		".svg":  "image/svg+xml",
	}
	names := []string{"index.html", "style.css", "app.js", "charts.js", "format.js", "table.js", "icon.svg"}
	assets := make([]asset, 0, len(names))
	for _, name := range names {
		content, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			panic(err) // the compiler has put it there
		}
		sum := sha256.Sum256(content)
		a := asset{path: "/" + name, kind: kinds[path.Ext(name)], content: content, etag: `"` + hex.EncodeToString(sum[:8]) + `"`}
		if name == "index.html" {
			a.path = "/"
		}
		assets = append(assets, a)
	}
	return assets
}

// serve sends the file, or says that the browser's copy is still good.
func (a asset) serve(w http.ResponseWriter, r *http.Request, _ string) error {
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Etag", a.etag)
	if r.Header.Get("If-None-Match") == a.etag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header().Set("Content-Type", a.kind)
	_, err := w.Write(a.content)
	return err
}
