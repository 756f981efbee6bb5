# Writes the sample tables of spatialdiff/data/tables/ from the R packages sp and gstat.
#
#   Rscript tests/oracles/make_tables.R spatialdiff/data/tables
#
# Needs r-cran-sp and r-cran-gstat; the tables were written with sp 1.6 and gstat 2.1-0. Nothing is computed here
# except the terrain height at the Swiss gauges, which is that of the cell of `demstd` a gauge lies in.
library(sp)
folder <- commandArgs(trailingOnly = TRUE)[1]
write_table <- function(frame, name) {
  out <- gzcon(file(file.path(folder, paste0(name, ".csv.gz")), "wb"), level = 9)
  text <- textConnection("lines", "w", local = TRUE)
  write.csv(frame, text, row.names = FALSE, quote = FALSE, na = "nan")
  close(text)
  writeLines(lines, out)
  close(out)
}
options(digits = 12)

data(meuse, package = "sp")
codes <- c("ffreq", "soil", "lime")
meuse[codes] <- lapply(meuse[codes], function(column) as.integer(as.character(column)))
names(meuse)[names(meuse) == "dist.m"] <- "distance"
write_table(meuse[c("x", "y", "cadmium", "copper", "lead", "zinc", "elev", "om", "dist", "distance", codes)], "meuse")

data(meuse.grid, package = "sp")
meuse.grid[c("ffreq", "soil")] <- lapply(meuse.grid[c("ffreq", "soil")], as.integer)
write_table(meuse.grid[c("x", "y", "dist", "ffreq", "soil")], "meuse_grid")

data(jura, package = "gstat")
metals <- c("Cd", "Co", "Cr", "Cu", "Ni", "Pb", "Zn")
jura <- rbind(cbind(prediction.dat, prediction = 1), cbind(validation.dat, prediction = 0))
names(jura)[1:4] <- c("x", "y", "landuse", "rock")
write_table(jura[c("x", "y", metals, "landuse", "rock", "prediction")], "jura")
grid <- data.frame(x = jura.grid$Xloc, y = jura.grid$Yloc,
                   landuse = as.integer(jura.grid$Landuse), rock = as.integer(jura.grid$Rock))
write_table(grid, "jura_grid")

data(sic97, package = "gstat")
at <- coordinates(sic_full)
write_table(data.frame(x = at[, 1], y = at[, 2], rainfall = sic_full$rainfall,
                       elevation = over(sic_full, demstd)$band1,
                       prediction = as.integer(sic_full$ID %in% sic_obs$ID)), "sic97")
