# Kriging by gstat, for tests/conditioning: Rscript make_kriging.R > kriging.json
suppressMessages({library(sp); library(gstat)})
number <- function(x) paste0("[", paste(format(x, digits = 17, trim = TRUE), collapse = ", "), "]")
data(meuse); data(meuse.grid)
coordinates(meuse) <- ~x + y
cells <- seq(1, nrow(meuse.grid), by = 31)
grid <- meuse.grid[cells, ]
coordinates(grid) <- ~x + y
out <- c()
add <- function(name, k, p = "var1.pred", v = "var1.var")
  out <<- c(out, sprintf('  "%s": {"mean": %s, "variance": %s}', name, number(k[[p]]), number(k[[v]])))
model <- vgm(0.55, "Exp", 300, nugget = 0.05)
quiet <- function(...) suppressMessages(krige(..., debug.level = 0))
add("simple", quiet(log(zinc) ~ 1, meuse, grid, model, beta = 5.9))
add("ordinary", quiet(log(zinc) ~ 1, meuse, grid, model))
add("universal", quiet(log(zinc) ~ x + y, meuse, grid, model))
# gstat solves normal equations: kilometres from the middle keep them well conditioned
trend <- log(zinc) ~ u + v + I(u^2) + I(u * v) + I(v^2)
meuse$u <- (coordinates(meuse)[, 1] - 180000) / 1000; meuse$v <- (coordinates(meuse)[, 2] - 331500) / 1000
grid$u <- (coordinates(grid)[, 1] - 180000) / 1000; grid$v <- (coordinates(grid)[, 2] - 331500) / 1000
add("quadratic", quiet(trend, meuse, grid, model))
add("external", quiet(log(zinc) ~ sqrt(dist), meuse, grid, vgm(0.2, "Sph", 900, nugget = 0.05)))
add("block", quiet(log(zinc) ~ 1, meuse, grid, vgm(0.55, "Exp", 300), block = c(40, 40)))
add("block_nugget", quiet(log(zinc) ~ 1, meuse, grid, model, block = c(100, 60)))
add("error", quiet(log(zinc) ~ 1, meuse, grid, vgm(0.05, "Err", 0, add.to = vgm(0.55, "Exp", 300))))
add("local", quiet(log(zinc) ~ 1, meuse, grid, model, nmax = 20))
g <- gstat(NULL, "cd", log(cadmium) ~ 1, meuse, model = vgm(0.9, "Sph", 800, nugget = 0.4))
g <- gstat(g, "zn", log(zinc) ~ 1, meuse[seq(1, 155, by = 2), ], model = vgm(0.6, "Sph", 800, nugget = 0.1))
g <- gstat(g, c("cd", "zn"), model = vgm(0.6, "Sph", 800, nugget = 0.15))
co <- predict(g, grid, debug.level = 0)
add("co_cd", co, "cd.pred", "cd.var")
add("co_zn", co, "zn.pred", "zn.var")
data(jura)
pred <- prediction.dat; val <- validation.dat
coordinates(pred) <- ~Xloc + Yloc; coordinates(val) <- ~Xloc + Yloc
add("jura_co", quiet(Co ~ 1, pred, val, vgm(11, "Sph", 1.2, nugget = 1.5)))
h <- gstat(NULL, "cd", Cd ~ 1, pred, model = vgm(0.5, "Exp", 0.4, nugget = 0.3))
h <- gstat(h, "ni", Ni ~ 1, rbind(pred["Ni"], val["Ni"]), model = vgm(60, "Exp", 0.4, nugget = 12))
h <- gstat(h, c("cd", "ni"), model = vgm(3, "Exp", 0.4, nugget = 0.6))
add("jura_cokriging", predict(h, val, debug.level = 0), "cd.pred", "cd.var")
data(sic97)
seen <- sic_full[sic_full$ID %in% sic_obs$ID, ]; rest <- sic_full[!(sic_full$ID %in% sic_obs$ID), ]
add("sic97", quiet(rainfall ~ 1, seen, rest, vgm(15000, "Sph", 85000, add.to = vgm(500, "Err", 0))))
meta <- sprintf('  "source": "R %s, gstat %s, sp %s; tests/oracles/make_kriging.R",\n  "cells": {"x": %s, "y": %s, "dist": %s}', getRversion(), packageVersion("gstat"), packageVersion("sp"), number(coordinates(grid)[, 1]), number(coordinates(grid)[, 2]), number(grid$dist))
cat("{\n", meta, ",\n", paste(out, collapse = ",\n"), "\n}\n", sep = "")
