module github.com/bulwark-mesh/bulwark/manifests

go 1.26.0
