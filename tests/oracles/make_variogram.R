# Writes variogram.json: sample variograms and weighted least-squares fits by R's gstat for the meuse and jura data.
#
#   Rscript tests/oracles/make_variogram.R tests/oracles/variogram.json
#
# gstat 2.1-0 (Pebesma 2004), sp 1.6. gstat's search stops early (relative change of 1e-5 or so): "polished" goes on
# from its answer to the minimum of the same criterion. Its fit.method 2 takes the weights N/gamma(h)^2 from the model
# it starts with: here it is called again from its own answer, 60 times, so that the weights settle.
library(sp); library(gstat)
options(digits = 17)
out <- commandArgs(trailingOnly = TRUE)[1]
number <- function(x) if (length(x) == 1) sprintf("%.15g", x) else paste0("[", paste(sprintf("%.15g", x), collapse = ", "), "]")
json <- function(x, indent = "") {
  if (is.list(x)) {
    deeper <- paste0(indent, "  ")
    items <- mapply(function(name, value) paste0(deeper, "\"", name, "\": ", json(value, deeper)), names(x), x)
    paste0("{\n", paste(items, collapse = ",\n"), "\n", indent, "}")
  } else if (is.character(x)) paste0("\"", x, "\"") else number(x)
}
table <- function(v) list(np = v$np, dist = v$dist, gamma = v$gamma)

polish <- function(v, fitted, method) {
  family <- as.character(fitted$model[2])
  curve <- function(p) variogramLine(vgm(p[2], family, p[3], p[1]), dist_vector = v$dist)$gamma
  weight <- function(p) switch(as.character(method), "1" = v$np, "6" = rep(1, nrow(v)), "7" = v$np / v$dist^2, "2" = v$np / curve(p)^2)
  settle <- function(p, w) {
    size <- sum(w * v$gamma^2)
    aim <- function(t) sum(w * (v$gamma - curve(exp(t)))^2) / size
    t <- log(p)
    for (round in 1:2) {
      t <- optim(t, aim, control = list(reltol = 1e-16, maxit = 2000))$par
      t <- optim(t, aim, method = "BFGS", control = list(reltol = 1e-16, maxit = 1000, ndeps = rep(1e-5, 3)))$par
    }
    exp(t)
  }
  p <- c(max(fitted$psill[1], 1e-6), fitted$psill[2], fitted$range[2])
  rounds <- if (method == 2) 3 else 1
  for (round in 1:rounds) { w <- weight(p); p <- settle(p, w) }
  w <- weight(p)
  list(nugget = p[1], psill = p[2], range = p[3], SSErr = sum(w * (v$gamma - curve(p))^2))
}
fits <- function(v, models) {
  found <- list()
  for (name in names(models)) for (method in c(1, 2, 6, 7)) {
    f <- fit.variogram(v, models[[name]], fit.method = method)
    if (method == 2) for (round in 1:60) f <- fit.variogram(v, f, fit.method = method)
    found[[paste0(name, method)]] <- list(nugget = f$psill[1], psill = f$psill[2], range = f$range[2],
                                          SSErr = attr(f, "SSErr"), polished = polish(v, f, method))
  }
  found
}

data(meuse, package = "sp"); coordinates(meuse) <- ~ x + y
data(jura, package = "gstat"); jura <- prediction.dat; coordinates(jura) <- ~ Xloc + Yloc

alone <- variogram(log(zinc) ~ 1, meuse)
towards <- variogram(log(zinc) ~ 1, meuse, alpha = c(0, 45, 90, 135))
g <- NULL
for (metal in c("cadmium", "copper", "lead", "zinc")) g <- gstat(g, metal, as.formula(paste0("log(", metal, ") ~ 1")), meuse)
cross <- variogram(g)
lmc <- fit.lmc(cross, g, vgm(1, "Sph", 900, 1))
matrices <- lapply(1:2, function(k) {
  n <- names(g$data)
  unlist(lapply(n, function(a) sapply(n, function(b) {
    id <- if (a == b) a else if (paste(a, b, sep = ".") %in% names(lmc$model)) paste(a, b, sep = ".") else paste(b, a, sep = ".")
    lmc$model[[id]]$psill[k]
  })))
})
by_id <- function(v) { ids <- unique(as.character(v$id)); setNames(lapply(ids, function(i) table(v[v$id == i, ])), ids) }
by_direction <- function(v) { a <- sort(unique(v$dir.hor)); setNames(lapply(a, function(d) table(v[v$dir.hor == d, ])), a) }

# sites are given to 10 m: edges that no distance is on
edges <- 0.003 + (1:15) / 10
cobalt <- variogram(Co ~ 1, jura, boundaries = edges, cutoff = 1.503)
k <- NULL
for (metal in c("Cd", "Ni", "Zn")) k <- gstat(k, metal, as.formula(paste0(metal, " ~ 1")), jura)

writeLines(json(list(
  source = paste0("R gstat ", packageVersion("gstat"), ", sp ", packageVersion("sp"), " (tests/oracles/make_variogram.R)"),
  meuse = list(
    default = table(alone),
    narrow = table(variogram(log(zinc) ~ 1, meuse, cutoff = 1000, width = 50)),
    cressie = table(variogram(log(zinc) ~ 1, meuse, cressie = TRUE)),
    linear = table(variogram(log(zinc) ~ x + y, meuse)),
    root_distance = table(variogram(log(zinc) ~ sqrt(dist), meuse)),
    directions = by_direction(towards),
    cross = by_id(cross),
    lmc = list(nugget = matrices[[1]], spherical = matrices[[2]]),
    fits = fits(alone, list(Sph = vgm(1, "Sph", 900, 1), Exp = vgm(1, "Exp", 300, 1)))),
  jura = list(
    cobalt = table(cobalt),
    cressie = table(variogram(Co ~ 1, jura, boundaries = edges, cutoff = 1.503, cressie = TRUE)),
    directions = by_direction(variogram(Co ~ 1, jura, boundaries = edges, cutoff = 1.503, alpha = c(0, 45, 90, 135))),
    cross = by_id(variogram(k, boundaries = edges, cutoff = 1.503)),
    fits = fits(cobalt, list(Sph = vgm(10, "Sph", 1, 2), Exp = vgm(10, "Exp", 0.4, 2))))
)), out)
